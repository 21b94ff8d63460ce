"""Activation checkpointing: which blocks keep less than their whole inside for the backward pass.

Holds the choice and its application, the same for every strategy; torch recomputes. A strategy applies it before it
compiles blocks, so that the compiler sees what is to be recomputed, and before it shards them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pretrain.errors import check
from pretrain.models.base import Model


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
        "aten::_scaled_mm",  # products in fp8
        "aten::_flash_attention_forward",  # with dropout
        "torch_attn::_varlen_attn",
        "flex_attention",  # a higher order operator
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
        rule = "no block is recomputed; set strategy.activation_checkpointing=selective or full, or leave this out"
        chosen = self.activation_checkpointing is not Recompute.none
        check(chosen or every == 1, "strategy.activation_checkpointing_every", every, rule)

    def recompute(self, model: Model) -> None:
        """Wrap the forward pass of the chosen blocks, in place."""
        if self.activation_checkpointing is Recompute.none:
            return
        options: dict[str, Any] = {"use_reentrant": False}
        if self.activation_checkpointing is Recompute.selective:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
        for block in model.blocks[:: self.activation_checkpointing_every]:
            block.forward = partial(checkpoint, block.forward, **options)


def is_recomputed(block: nn.Module) -> bool:
    """Return whether a block's forward pass is wrapped for recomputation."""
    return isinstance(block.forward, partial) and block.forward.func is checkpoint


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name() in SAVED else CheckpointPolicy.PREFER_RECOMPUTE
