"""Attention through torch's scaled_dot_product_attention, the choice for CPUs.

Sequences of one length are a reshape; how ragged ones become dense is in `sdpa_ragged`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.models.attention import sdpa_ragged
from pretrain.models.attention.masks import check_window
from pretrain.models.attention.sdpa_kernels import describe, mask_dtype
from pretrain.models.attention.sdpa_ragged import Mask, attend_dense, attend_ragged, mask_of
from pretrain.models.base import Attend, AttentionConfig, AttentionUse, Bias, Layout
from pretrain.registry import register


@register("attention", "sdpa")
@dataclass(kw_only=True)
class SdpaConfig(AttentionConfig):
    """`attention=sdpa`: any device and precision; no fused kernel where CPUs drop attention weights."""

    def build(self) -> Attend:
        """Return the backend."""
        return sdpa

    def start(self, use: AttentionUse, device: torch.device) -> str:
        """Name torch's kernels; see `AttentionConfig`."""
        return describe(use, device)


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    causal: bool,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """Return the attention of each sequence over its own keys, (Nq, H, E) (see `Attend`)."""
    check_window(layout, causal, window)
    if window is not None and window >= layout.max_k:
        window = None
    num_sequences = layout.q_offsets.shape[0] - 1
    # No length exceeds its maximum, so all are equal if they add up to S times it: known without reading the device.
    if q.shape[0] == num_sequences * layout.max_q and k.shape[0] == num_sequences * layout.max_k:
        mask, distances = Mask(None, causal), None if bias is None else bias.distances
        if window is not None or distances is not None or (causal and layout.max_q != layout.max_k):
            key, one = ("sdpa uniform", causal, window, distances, mask_dtype(q)), ([layout.max_q], [layout.max_k])
            mask = layout.plan(key, lambda: mask_of(*one, causal, window, distances, q.device, mask_dtype(q)))
        return attend_dense(q, k, v, num_sequences, mask, bias, dropout, scale)
    if not torch.compiler.is_compiling():
        return attend_ragged(q, k, v, layout, causal, window, dropout, scale, bias)
    with torch._dynamo.error_on_graph_break(False):  # this break is meant: calls depend on lengths
        return sdpa_ragged.attend_ragged_uncompiled(q, k, v, layout, causal, window, dropout, scale, bias)
