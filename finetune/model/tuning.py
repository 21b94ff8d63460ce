"""What a way of fine-tuning is to the rest of it.

Holds the protocol; each way has its own file.
"""

from __future__ import annotations

from typing import Any, Protocol

from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.low_rank import Summed
from pretrain.models.base import Model


class TuningConfig(Protocol):
    """What `run` asks of a choice of the group `tuning`. The head is always trained."""

    def prepare(self, model: Model) -> None:
        """Say which of the model's parameters learn, and add what learns in their place; on the meta device."""
        ...

    def merged(self, weights: FragmentReader, network: Any) -> FragmentReader | Summed:
        """Return a trained step's weights as those of a model of such a network to which nothing was added."""
        ...
