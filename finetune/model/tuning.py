"""What a way of fine-tuning is to the rest of it.

Holds the protocol; each way has its own file.
"""

from __future__ import annotations

from typing import Protocol

from finetune.model.lora import Merged
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.models.base import Model


class TuningConfig(Protocol):
    """What `run` asks of a choice of the group `tuning`. The head is always trained."""

    def prepare(self, model: Model) -> None:
        """Say which of the model's parameters learn, and add what learns in their place; on the meta device."""
        ...

    def merged(self, weights: FragmentReader) -> FragmentReader | Merged:
        """Return a trained step's weights as those of a model to which nothing was added."""
        ...
