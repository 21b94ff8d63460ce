"""The default backend: flash where the device and the precision allow it, flex there with a bias, sdpa elsewhere.

Holds the choice only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.errors import check
from pretrain.models.attention.flash import HALF, FlashConfig, available, make_flash, takes
from pretrain.models.attention.flash_versions import newer
from pretrain.models.attention.flex import NARROWEST, make_flex
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.attention.sdpa_kernels import describe
from pretrain.models.base import Asked, Attend, AttentionUse, Bias, Layout, Planner
from pretrain.registry import register


@register("attention", "auto")
@dataclass(kw_only=True)
class AutoConfig(FlashConfig):
    """`attention=auto`: flash where device, precision and shapes allow it, flex there with a bias, sdpa elsewhere."""

    def check(self, *, dtype: torch.dtype, dropout: float, dropout_key: str, bias: str | None = None) -> None:
        """Raise `ConfigError` where a version of FlashAttention is named that could not compute anything."""
        if newer(self.implementation):
            named = f"attention.implementation={self.implementation.value}"
            check(dtype in HALF, "precision", "fp32", f"{named} is for bf16 and fp16; set one, or leave it out")
            check(dropout == 0, dropout_key, dropout, f"{named} cannot drop attention weights; set 0, or leave it out")

    def build(self) -> Attend:
        """Return the backend; raise `ConfigError` where no device can run a version that is named."""
        rule = "needs a CUDA device of compute capability 8.0 or newer; leave it out"
        named = newer(self.implementation) and not available()
        check(not named, "attention.implementation", self.implementation.value, rule)
        return make_auto() if available() else sdpa

    def start(self, use: AttentionUse, device: torch.device) -> str:
        """Activate a version of FlashAttention if it is of use; see `AttentionConfig`."""
        if device.type != "cuda" or not takes(use.dtype, use.head_width, use.dropout):
            return describe(use, device)
        if not use.biased:
            return super().start(use, device)
        takes_bias = use.head_width >= NARROWEST and not use.dropout
        return "flex_attention, for the bias" if takes_bias else describe(use, device)


def make_auto() -> Auto:
    """Return the backend without asking for a device."""
    return Auto()


class Auto(Planner):
    """The backend (see `Attend`), and the plans of the one that it chooses (see `Planner`)."""

    def __init__(self) -> None:
        self._flash, self._flex = make_flash(), make_flex()

    def __call__(
        self,
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
        """Return the attention of each sequence over its own keys, (Nq, H, E) (see `Attend`)."""
        chosen = self._chosen(q.is_cuda, q.dtype, q.shape[-1], dropout, biased=bias is not None)
        return chosen(q, k, v, layout, causal=causal, window=window, dropout=dropout, scale=scale, bias=bias)

    def plan(self, layout: Layout, asked: Asked) -> None:
        """Make the plans of flex; see `Planner`."""
        on_gpu, biased = layout.q_offsets.is_cuda, asked.distances is not None
        if self._chosen(on_gpu, asked.dtype, asked.head_width, asked.dropout, biased=biased) is self._flex:
            self._flex.plan(layout, asked)

    def _chosen(self, on_gpu: bool, dtype: torch.dtype, head_width: int, dropout: float, *, biased: bool) -> Attend:
        if not on_gpu or not takes(dtype, head_width, dropout):
            return sdpa
        if not biased:
            return self._flash
        return self._flex if head_width >= NARROWEST and dropout == 0 else sdpa
