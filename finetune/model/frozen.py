"""Full fine-tuning, and training only the head and optionally the last blocks.

Holds what is frozen; adapters are in `lora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.fragments import FragmentReader
from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.registry import register


@register("tuning", "full")
@dataclass(kw_only=True)
class FullConfig:
    """All parameters are trained."""

    def prepare(self, model: Model) -> None:
        """See `TuningConfig`: nothing is frozen."""

    def merged(self, weights: FragmentReader, network: Any) -> FragmentReader:
        """See `TuningConfig`: nothing was added."""
        return weights


@register("tuning", "frozen")
@dataclass(kw_only=True)
class FrozenConfig(FullConfig):
    """The head is trained, and optionally the last blocks of the model; the rest keeps its weights."""

    blocks: int = 0  # last blocks that are trained, of an encoder-decoder on either side, with final norms if any

    def __post_init__(self) -> None:
        check(self.blocks >= 0, "tuning.blocks", self.blocks, "0 (none of the model) or more blocks")

    def prepare(self, model: Model) -> None:
        """See `TuningConfig`. Raises `ConfigError` for more blocks than the model has."""
        layers = model.top - 1
        rule = f"the model has {layers} blocks; lower it, or set tuning=full"
        check(self.blocks <= layers, "tuning.blocks", self.blocks, rule)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.blocks > 0 and model.depth(name) > layers - self.blocks)
