"""What attention derives from the layout of a batch, made before the first block: graphs of blocks find it there.

Holds no plan: backends that make some are `Planner`s.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pretrain.models.base import Asked, Layout, Planner
from pretrain.models.layers import Attention, Block, CrossAttention, CrossBlock, Relative


def make_plans(blocks: Iterable[nn.Module], x: Tensor, layout: Layout, relative: Relative | None = None) -> None:
    """Have backends make the plans of self-attention for a pass of x (N, D) through these blocks, without caches."""
    for block in blocks:
        assert isinstance(block, Block)
        attention = block.attention
        if isinstance(attention.attend, Planner):
            distances = None if relative is None else relative.distances
            asked = _asked(attention, x, len(x))
            asked = asked._replace(causal=attention.causal, window=attention.window, distances=distances)
            attention.attend.plan(layout, asked)


def make_cross_plans(blocks: Iterable[CrossBlock], x: Tensor, states: Tensor, layout: Layout) -> None:
    """Do the same for their attention to the states of a source (Ns, D), by the layout that leads there."""
    for block in blocks:
        if isinstance(block.cross.attend, Planner):
            block.cross.attend.plan(layout, _asked(block.cross, x, len(states)))


def _asked(attention: Attention | CrossAttention, x: Tensor, num_k: int) -> Asked:
    """Return what an attention to all of `num_k` keys asks."""
    kind = x.device.type
    return Asked(
        num_q=len(x),
        num_k=num_k,
        dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype,
        head_width=attention.head_width,
        dropout=attention.dropout if attention.training else 0.0,
    )
