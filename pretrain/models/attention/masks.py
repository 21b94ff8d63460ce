"""Lengths and masks of ragged sequences, shared by the backends that compute on padded tensors.

Holds no attention and no choice of the config group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.errors import check
from pretrain.models.base import Layout


def lengths(layout: Layout) -> tuple[list[int], list[int]]:
    """Return how many tokens the queries and keys of every sequence have; read from the device if need be."""
    if layout.q_lengths is not None and layout.k_lengths is not None:
        return layout.q_lengths, layout.k_lengths

    def read() -> tuple[list[int], list[int]]:
        q_lengths = layout.q_offsets.diff().tolist()
        same = layout.q_offsets is layout.k_offsets
        return q_lengths, q_lengths if same else layout.k_offsets.diff().tolist()

    return layout.plan("lengths", read)


def check_window(layout: Layout, causal: bool, window: int | None) -> None:
    """Raise `ConfigError` for a window around queries that stand at no key of their own: those of other sequences."""
    rule = "a window on both sides needs queries and keys of the same sequences; set null, or use causal attention"
    check(window is None or causal or layout.q_offsets is layout.k_offsets, "model.window", window, rule)


def visible(q_lengths: Tensor, k_lengths: Tensor, max_q: int, max_k: int, causal: bool, window: int | None) -> Tensor:
    """Return which keys each query may see, (B, max_q, max_k) bool, for B right-padded sequences.

    The last query of a sequence stands at its last key. Queries that are padding see everything: a row of a softmax
    without any key would be NaN, and NaN times a zero gradient is still NaN.
    """
    q = torch.arange(max_q, device=q_lengths.device)[None, :, None]
    k = torch.arange(max_k, device=q_lengths.device)[None, None, :]
    q_lengths, k_lengths = q_lengths[:, None, None], k_lengths[:, None, None]
    behind = q + (k_lengths - q_lengths) - k  # how many positions the key lies behind the query
    seen = k < k_lengths
    if causal:
        seen = seen & (behind >= 0)
    if window is not None:
        seen = seen & (behind.abs() < window)
    return seen | (q >= q_lengths)
