"""The root that commands of fine-tuning compose.

Holds its name; composing is `pretrain.compose`'s.
"""

from finetune.config import FinetuneConfig, register_choices
from pretrain.compose import Root

FINETUNE = Root("finetune", FinetuneConfig, register_choices)
