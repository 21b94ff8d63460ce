"""Attention written out, one sequence at a time: the reference that every other backend is tested against.

Not for training: it stores all attention weights and loops over sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.attention.masks import check_window, lengths, visible
from pretrain.models.base import Attend, AttentionConfig, Bias, Layout
from pretrain.registry import register


@register("attention", "eager")
@dataclass(kw_only=True)
class EagerConfig(AttentionConfig):
    """`attention=eager`: any device and precision, slow."""

    def build(self) -> Attend:
        """Return the backend."""
        return eager


def eager(
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
    """Return softmax(scale q kᵀ + bias) v of each sequence, (Nq, H, E), computed in fp32 or better (see `Attend`)."""
    check_window(layout, causal, window)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Tensor:
        """Return the attention of one sequence."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        group = q.shape[1] // k.shape[1]  # query heads that share one key-value head
        heads_first = (q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))
        query, key, value = (x.to(dtype).transpose(0, 1) for x in heads_first)
        scores = query @ key.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if bias is not None:
            scores = scores + _values(bias, q, k).to(dtype)
        q_length, k_length = (torch.tensor([len(x)], device=q.device) for x in (q, k))
        hidden = ~visible(q_length, k_length, len(q), len(k), causal, window)
        weights = F.dropout(scores.masked_fill(hidden, float("-inf")).softmax(dim=-1), dropout)
        return (weights @ value).transpose(0, 1).to(q.dtype)

    q_lengths, k_lengths = lengths(layout)

    def queries(x: Tensor) -> Sequence[Tensor]:
        return x.split(q_lengths)

    def keys(x: Tensor) -> Sequence[Tensor]:
        return x.split(k_lengths)

    biases = repeat(None) if bias is None else bias.cut(queries, keys)
    return torch.cat([attend(*one) for one in zip(queries(q), keys(k), keys(v), biases, strict=False)])


def _values(bias: Bias, q: Tensor, k: Tensor) -> Tensor:
    """Return what the bias adds to the score of each query and key of one sequence, (H, Tq, Tk)."""
    head, query, key = torch.arange(q.shape[1])[:, None, None], torch.arange(len(q))[:, None], torch.arange(len(k))
    row = bias.distances.rows(key - (query + len(k) - len(q)))
    return bias.at(*(index.to(q.device) for index in (head, query, key, row)))
