"""Relative positions as T5 has them (Raffel et al. 2020): buckets of distances, and their values between positions.

Holds no attention: the backends add to their scores what is looked up here. Nothing here is as large as the stream
squared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.base import RelativeBias


class Buckets(NamedTuple):
    """How distances share the rows of a table: a `RelativeBias` without its tensor, which plans may be keyed by."""

    num_buckets: int  # rows of the table
    bidirectional: bool  # see `RelativeBias`
    max_distance: int

    @classmethod
    def of(cls, bias: RelativeBias | None) -> Buckets | None:
        """Return the buckets of a bias; None for none."""
        return None if bias is None else cls(bias.table.shape[0], bias.bidirectional, bias.max_distance)

    def rows(self, relative: Tensor) -> Tensor:
        """Return the bucket of each position of a key minus that of its query, int64 of the same shape.

        Half of the distances' buckets hold one distance each, the others grow by a constant factor up to
        `max_distance`. Computed in fp32 and truncated, as every released T5 was trained; `relative` lies on the CPU, as
        the logarithms of a GPU may fall on the other side of a limit between two buckets.
        """
        count = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        distance = relative.abs() if self.bidirectional else (-relative).clamp(min=0)
        exact = count // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        shared = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        row = torch.where(distance < exact, distance, shared)
        return row + count * (relative > 0) if self.bidirectional else row

    def between(self, num_q: int, num_k: int, behind: list[int]) -> Tensor:
        """Return the buckets of all that keys minus queries may be, (B, num_q + num_k - 1) int64, ascending.

        The first query of sequence b stands at key `behind[b]`: 0 without a cache.
        """
        relative = torch.arange(1 - num_q, num_k)
        return self.rows(relative - torch.tensor(behind)[:, None])


def values_between(table: Tensor, rows: Tensor, num_q: int, *, causal: bool) -> Tensor:
    """Return the table's value for each query and key, (B, H, num_q, num_k), from the `rows` that `between` returned.

    They depend on the difference alone: each query's are those of the query before, shifted by one. `causal`: those of
    keys after the query are -inf; for sequences without a cache.
    """
    values = F.embedding(rows, table).transpose(1, 2).contiguous()  # (B, H, num_q + num_k - 1)
    if causal:
        values = values.masked_fill(torch.arange(rows.shape[1], device=rows.device) >= num_q, float("-inf"))
    num_k = rows.shape[1] - num_q + 1
    return values.unfold(-1, num_k, 1).flip(-2)
