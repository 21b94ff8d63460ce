"""The default backend: flash where the device and the precision allow it, flex there with a bias, sdpa elsewhere.

Holds the choice only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pretrain.models.attention.flash import HALF, available, make_flash
from pretrain.models.attention.flex import make_flex
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Attend, AttentionConfig, Bias, Layout
from pretrain.registry import register


@register("attention", "auto")
@dataclass(kw_only=True)
class AutoConfig(AttentionConfig):
    """`attention=auto`: flash where device, precision and shapes allow it, flex there with a bias, sdpa elsewhere."""

    def build(self) -> Attend:
        """Return the backend."""
        return make_auto() if available() else sdpa


def make_auto() -> Attend:
    """Return the backend without asking for a device."""
    flash, flex = make_flash(), make_flex()

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
        bias: Bias | None = None,
    ) -> Tensor:
        # FlashAttention-2 takes heads of multiples of 8, up to 256 wide.
        fits = q.is_cuda and q.dtype in HALF and dropout == 0.0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
        chosen = flash if fits else sdpa
        if fits and bias is not None:
            chosen = flex if q.shape[-1] >= 16 else sdpa  # the narrowest heads that flex takes
        return chosen(q, k, v, layout, causal=causal, window=window, dropout=dropout, scale=scale, bias=bias)

    return auto
