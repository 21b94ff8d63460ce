"""Ragged sequences as dense calls of scaled_dot_product_attention.

Neighbours of one length are one call, straight from the stream, where that makes calls long enough; otherwise sequences
are sorted by length and copied into buckets, padded on the right. The plan is made once a micro-batch and shared by all
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.attention.masks import lengths, visible
from pretrain.models.attention.relative import rows_between
from pretrain.models.attention.sdpa_kernels import added, mask_dtype, repeated, takes_grouped_heads
from pretrain.models.base import Bias, Distances, Layout

# Mean tokens of a call from which calls straight from the stream beat copies into buckets. On CPUs it is measured; on
# GPUs estimated: a call is some twenty launches forwards and backwards, 0.1 ms, in which they attend over thousands.
LONG_RUN_TOKENS = {"cpu": 32, "cuda": 2048}
BUCKET_SLACK = 0.25  # share of a bucket's longest sequence that padding may add to a shorter one


def attend_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    causal: bool,
    window: int | None,
    dropout: float,
    scale: float | None,
    bias: Bias | None,
) -> Tensor:
    """Return the attention within sequences of uneven lengths, (Nq, H, E) (see `Attend`)."""
    distances = None if bias is None else bias.distances
    key = ("sdpa ragged", causal, window, distances, mask_dtype(q))
    plan: _Plan = layout.plan(key, lambda: _plan(layout, causal, window, distances, q.device, mask_dtype(q)))
    biases = repeat(None) if bias is None else bias.cut(plan.queries, plan.keys)
    inputs = zip(plan.queries(q), plan.keys(k), plan.keys(v), strict=True)
    calls = zip(inputs, plan.counts, plan.masks, biases, strict=False)
    out = torch.cat([attend_dense(*qkv, count, mask, part, dropout, scale) for qkv, count, mask, part in calls])
    return out if plan.q_copy is None else out.index_select(0, plan.q_copy.back)


def __getattr__(name: str) -> Any:
    """Make `attend_ragged_uncompiled` when compiled code asks for it: the decorator imports torch._dynamo."""
    if name != "attend_ragged_uncompiled":
        raise AttributeError(name)
    globals()[name] = torch.compiler.disable(attend_ragged)
    return globals()[name]


class Mask(NamedTuple):
    """How the kernel masks: by a tensor, by its own causal rule, or not at all."""

    tensor: Tensor | None  # (B or 1, 1 or H, Tq, Tk), bool: whether the query sees the key; or added to the scores
    causal: bool
    rows: Tensor | None = None  # (B or 1, Tq + Tk - 1) of a bias that is still to be added, see `rows_between`

    def biased(self, bias: Bias, num_q: int, dtype: torch.dtype) -> Mask:
        """Return the mask with the values of the bias in it, of this type."""
        assert self.rows is not None
        # Half precision comes last, so that gradients of tables are added up in single precision or better.
        added = bias.single().dense(self.rows, num_q, causal=self.causal).to(dtype)
        return Mask(added if self.tensor is None else added.masked_fill(~self.tensor, float("-inf")), False)


def mask_of(
    q_lengths: list[int],
    k_lengths: list[int],
    causal: bool,
    window: int | None,
    distances: Distances | None,
    device: torch.device,
    dtype: torch.dtype | None,  # of the mask; None: boolean
) -> Mask:
    """Return the cheapest correct mask for B right-padded sequences of these lengths.

    Of a bias it holds no values, only their rows in its tables: blocks share the mask, but may have casts of their own,
    and values have a graph, which recomputation could not follow.
    """
    rows = None
    if distances is not None:
        behind = [k - q for q, k in zip(q_lengths, k_lengths, strict=True)]
        same = len(set(behind)) == 1
        rows = rows_between(distances, max(q_lengths), max(k_lengths), behind[:1] if same else behind)
        rows = rows.to(device, non_blocking=True)
    if window is None:
        # Padding stands behind every real query, so that the causal rule hides it.
        if causal and q_lengths == k_lengths:
            return Mask(None, True, rows)
        if len(set(k_lengths)) == 1 and (not causal or max(q_lengths) == 1):
            return Mask(None, False, rows)
    q, k = (torch.tensor(x).to(device, non_blocking=True) for x in (q_lengths, k_lengths))
    seen = visible(q, k, max(q_lengths), max(k_lengths), causal, window).unsqueeze(1)
    return Mask(seen if dtype is None or rows is not None else added(seen, dtype), False, rows)


def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    count: int,
    mask: Mask,
    bias: Bias | None,  # of these queries and keys
    dropout: float,
    scale: float | None,
) -> Tensor:
    """Return the attention within `count` sequences of equal length that lie end to end, in the shape of q."""
    grouped = q.shape[1] != k.shape[1]
    masked = mask.tensor is not None or bias is not None
    if grouped and q.is_cuda and not takes_grouped_heads(q.dtype, q.shape[-1], masked=masked):
        k, v = (repeated(x, q.shape[1] // k.shape[1]) for x in (k, v))
        grouped = False
    query, key, value = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    if bias is not None:
        mask = mask.biased(bias, query.shape[2], q.dtype)
    grouped = not q.shape[1] == k.shape[1]  # no `!=`, which torch.compile keeps as a symbol  # noqa: SIM201
    trained = mask.tensor is not None and mask.tensor.requires_grad
    if (dropout or trained) and q.device.type == "cpu" and q.dtype == torch.float32:
        out = _written_out(query, key, value, mask, dropout, scale)
    else:
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask.tensor,
            is_causal=mask.causal,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=grouped,
        )
    return out.transpose(1, 2).flatten(0, 1)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float, scale: float | None) -> Tensor:
    """Return softmax(scale q kᵀ + bias) v with dropout of the weights, (B, H, Tq, E), for fp32 on CPUs.

    The kernel there has no dropout and no gradient of a bias, and torch falls back to these operations with a guard
    against rows that see no key. Ours always see one, so this version drops the guard: 3 to 5 % of a step of
    fine-tuning on short texts. Lower precisions are left to torch, which computes them in fp32.
    """
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    seen = mask.tensor
    if mask.causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(2, 3)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
    return F.dropout(scores.softmax(dim=-1), dropout) @ v


class _Copy(NamedTuple):
    """How the rows of one stream move into padded buckets and back.

    Padding repeats the last row of its own sequence. Nothing reads it, so its gradient is zero, and the gradient of a
    row is exactly that of its one real copy.
    """

    rows: Tensor  # (M,) int64, the flat row that each padded row is a copy of
    back: Tensor  # (N,) int64, the padded row that holds each flat row


class _Plan(NamedTuple):
    """The calls of the kernel, in order, each on sequences of one (padded) length."""

    q_rows: list[int]  # query rows of each call, padding included
    k_rows: list[int]  # key rows of each call, padding included
    counts: list[int]  # sequences of each call
    masks: list[Mask]
    q_copy: _Copy | None  # None: calls read the flat stream as it is
    k_copy: _Copy | None

    def queries(self, x: Tensor) -> Sequence[Tensor]:
        """Cut the stream of queries, (Nq, ...), into those of each call."""
        return (x if self.q_copy is None else x.index_select(0, self.q_copy.rows)).split(self.q_rows)

    def keys(self, x: Tensor) -> Sequence[Tensor]:
        """Cut the stream of keys, (Nk, ...), into those of each call."""
        return (x if self.k_copy is None else x.index_select(0, self.k_copy.rows)).split(self.k_rows)


def _plan(
    layout: Layout,
    causal: bool,
    window: int | None,
    distances: Distances | None,
    device: torch.device,
    dtype: torch.dtype | None,  # of masks
) -> _Plan:
    """Cut the stream into runs of equal length where these are long, into padded buckets where they are short."""
    q_lengths, k_lengths = lengths(layout)
    owners = [s for s, pair in enumerate(zip(q_lengths, k_lengths, strict=True)) if pair != (0, 0)]
    groups = [list(run) for _, run in groupby(owners, key=lambda s: (q_lengths[s], k_lengths[s]))]
    copied = sum(q_lengths) < LONG_RUN_TOKENS[device.type] * len(groups)
    if copied:
        groups = _buckets(owners, q_lengths, k_lengths)
    q_groups = [[q_lengths[s] for s in group] for group in groups]
    k_groups = [[k_lengths[s] for s in group] for group in groups]
    return _Plan(
        q_rows=[len(group) * max(group) for group in q_groups],
        k_rows=[len(group) * max(group) for group in k_groups],
        counts=[len(group) for group in groups],
        masks=[
            mask_of(q, k, causal, window, distances, device, dtype) for q, k in zip(q_groups, k_groups, strict=True)
        ],
        q_copy=_copy(groups, q_lengths, device) if copied else None,
        k_copy=_copy(groups, k_lengths, device) if copied else None,
    )


def _buckets(owners: list[int], q_lengths: list[int], k_lengths: list[int]) -> list[list[int]]:
    """Sort sequences by length; cut where padding would exceed the slack, or 16 tokens, which cost less than a call."""
    buckets: list[list[int]] = []
    for s in sorted(owners, key=lambda s: (k_lengths[s], q_lengths[s]), reverse=True):
        first = buckets[-1][0] if buckets else None
        if first is not None and k_lengths[first] - k_lengths[s] <= max(16, BUCKET_SLACK * k_lengths[first]):
            buckets[-1].append(s)
        else:
            buckets.append([s])
    return buckets


def _copy(groups: list[list[int]], sizes: list[int], device: torch.device) -> _Copy:
    size = torch.tensor(sizes)
    start = size.cumsum(0) - size
    rows, real = [], []
    for group in groups:
        within = torch.arange(max(sizes[s] for s in group))
        rows.append((start[group, None] + within.minimum(size[group, None] - 1)).flatten())
        real.append((within < size[group, None]).flatten())
    flat_rows, is_real = torch.cat(rows), torch.cat(real)
    back = torch.empty(sum(sizes), dtype=torch.int64)
    back[flat_rows[is_real]] = is_real.nonzero().squeeze(1)
    return _Copy(flat_rows.to(device, non_blocking=True), back.to(device, non_blocking=True))
