"""The default backend: flash where the device and the precision allow it, sdpa elsewhere.

Holds the choice only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pretrain.models.attention.flash import HALF, available, make_flash
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Attend, AttentionConfig, Layout, RelativeBias
from pretrain.registry import register


@register("attention", "auto")
@dataclass(kw_only=True)
class AutoConfig(AttentionConfig):
    """`attention=auto`: flash where device, precision and shapes allow it, sdpa elsewhere."""

    def build(self) -> Attend:
        """Return the backend."""
        return make_auto() if available() else sdpa


def make_auto() -> Attend:
    """Return the backend without asking for a device."""
    flash = make_flash()

    def auto(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        causal: bool,
        window: int | None = None,
        dropout: float = 0,
        scale: float | None = None,
        bias: RelativeBias | None = None,
    ) -> Tensor:
        # FlashAttention-2 takes heads of multiples of 8, up to 256 wide.
        fits = q.is_cuda and q.dtype in HALF and dropout == 0.0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
        return (flash if fits else sdpa)(q, k, v, layout, causal=causal, window=window, dropout=dropout)

    return auto
