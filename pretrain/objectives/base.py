"""What an objective is: a module around a model that turns a batch into a loss.

Holds the protocol only; each objective has its own file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from pretrain.data.base import Batch, Slots
from pretrain.models.base import Model
from pretrain.models.initialise import Initial


class Loss(NamedTuple):
    """Sums over the targets of one micro-batch; the loop divides them by the targets of the global batch."""

    total: Tensor  # () fp32, what is minimised, summed over targets; carries the graph
    nll: Tensor  # () fp32, negative log-likelihood in nats alone, summed over targets, detached


class Objective(nn.Module):
    """The module that is trained: `model` and what the objective adds to it. `forward` maps a `Batch` to a `Loss`."""

    model: Model

    def forward(self, batch: Batch) -> Loss:
        raise NotImplementedError

    def initial(self, name: str) -> Initial:
        """Return how the tensor of that name begins; an objective with parameters beside `model` answers for them."""
        return self.model.initial(name.removeprefix("model."))


class ObjectiveConfig(Protocol):
    """What `run` asks of an objective's dataclass."""

    def build(self, model: Model) -> Objective:
        """Return the module that is trained."""
        ...

    def examples(self, slots: Slots) -> tuple[np.ndarray, np.ndarray]:
        """Return input tokens (N,) and targets (N,), both int64; a pure function of the slots and their keys."""
        ...
