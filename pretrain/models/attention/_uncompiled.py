"""What compiled code calls and does not take in.

Imported while torch compiles and not before: `torch.compiler.disable` pulls in torch._dynamo, which takes seconds that
no other command should wait for.
"""

import torch

from pretrain.models.attention import sdpa_ragged as pieces

# The plan is lists of lengths, on which compiled code would be specialised for each batch.
attend_ragged = torch.compiler.disable(pieces.attend_ragged)
