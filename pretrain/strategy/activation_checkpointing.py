"""Activation checkpointing: which blocks keep less than their whole inside for the backward pass.

Holds the choice and its application, the same for every strategy; torch recomputes. A strategy applies it after it
compiled blocks and before it shards them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.strategy.compile import CompileConfig, Scope


class Recompute(StrEnum):
    """What of a block is computed again in the backward pass."""

    none = "none"
    full = "full"
    selective = "selective"


# The outcomes that `selective` keeps: linear layers and fused attention, nearly all of a block's arithmetic. Attention
# as plain products (aten::bmm) is not among them, for its scores are what takes most memory.
SAVED = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    }
)


@dataclass(kw_only=True)
class RecomputationConfig:
    """The settings that every strategy has for activation checkpointing."""

    activation_checkpointing: Recompute = Recompute.none  # none, full (of blocks), selective (but for their products)
    activation_checkpointing_every: int = 1  # blocks: 1 chooses all, n only the blocks 0, n, 2n, ...

    def __post_init__(self) -> None:
        every = self.activation_checkpointing_every
        check(every >= 1, "strategy.activation_checkpointing_every", every, "at least 1 block")

    def recompute(self, model: Model, compilation: CompileConfig) -> None:
        """Wrap the forward pass of the chosen blocks, in place. Raises `ConfigError` for what would have no effect."""
        if self.activation_checkpointing is Recompute.none:
            return
        options: dict[str, Any] = {"use_reentrant": False}
        if self.activation_checkpointing is Recompute.selective:
            rule = "chooses among operators, and compiled blocks have none; set it to full, or compile=none"
            compiled = compilation.scope is not Scope.none
            check(not compiled, "strategy.activation_checkpointing", self.activation_checkpointing.value, rule)
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
        for block in model.blocks[:: self.activation_checkpointing_every]:
            block.forward = partial(checkpoint, block.forward, **options)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name() in SAVED else CheckpointPolicy.PREFER_RECOMPUTE
