"""The final hidden states of passes that train nothing, under any strategy.

Holds how they are read from the module that a strategy wrapped; `samples` and `choices` use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretrain.models.base import Model


@contextmanager
def hidden_states(module: nn.Module, model: Model, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Have `see` called with the final hidden states (N, D) of each pass through `module`, which holds the `model`.

    It is called within the pass, where every rank has the weights of the head, and must use them on every rank. Inside
    the `with` block there is no dropout and no graph; after it the module is in training mode.
    """

    def hook(model: nn.Module, inputs: object, hidden: Tensor) -> None:
        see(hidden)

    module.eval()
    with torch.no_grad(), model.register_forward_hook(hook):
        yield
    module.train()
