"""Relative positions as T5 has them (Raffel et al. 2020): buckets of distances, and their values between positions.

Holds no attention: the backends add to their scores what is looked up here. Nothing here is as large as the stream
squared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.base import Cut, Distances


class Buckets(NamedTuple):
    """How distances share the rows of a table of T5; see `Distances`."""

    num_buckets: int  # rows of the table
    bidirectional: bool  # see `RelativeBias`
    max_distance: int

    @property
    def farthest(self) -> int:
        """Positions; from there on all distances on one side share a row."""
        return self.max_distance

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


class RelativeBias(NamedTuple):
    """A learned value for each head and each bucket of distances, the same for all tokens (T5); see `Bias`."""

    table: Tensor  # (buckets, H)
    bidirectional: bool  # whether keys after the query have half of the buckets; else they share the first
    max_distance: int  # positions; from there on all share the last bucket

    @property
    def distances(self) -> Buckets:
        """How distances share the rows of the table."""
        return Buckets(self.table.shape[0], self.bidirectional, self.max_distance)

    def at(self, head: Tensor, q: Tensor, k: Tensor, row: Tensor) -> Tensor:
        """Return the values of heads and rows of the table, whatever the tokens."""
        return self.table[row, head]

    def dense(self, rows: Tensor, num_q: int, *, causal: bool) -> Tensor:
        """Return the values in sequences that lie end to end, (B or 1, H, num_q, num_k); see `Bias`.

        They depend on the difference alone: each query's are those of the query before, shifted by one.
        """
        values = F.embedding(rows, self.table).transpose(1, 2).contiguous()  # (B, H, num_q + num_k - 1)
        if causal:
            values = values.masked_fill(torch.arange(rows.shape[1], device=rows.device) >= num_q, float("-inf"))
        return pairs(values, num_q)

    def cut(self, queries: Cut, keys: Cut) -> Iterable[RelativeBias]:
        """Return itself for each part: it does not depend on the tokens."""
        return repeat(self)

    def single(self) -> RelativeBias:
        """Return it with the table in single precision or better."""
        return self._replace(table=single(self.table))


def rows_between(distances: Distances, num_q: int, num_k: int, behind: list[int]) -> Tensor:
    """Return the rows of all that keys minus queries may be, (B, num_q + num_k - 1) int64, ascending.

    The first query of sequence b stands at key `behind[b]`: 0 without a cache.
    """
    relative = torch.arange(1 - num_q, num_k)
    return distances.rows(relative - torch.tensor(behind)[:, None])


def pairs(between: Tensor, num_q: int) -> Tensor:
    """Return what is known of differences (..., num_q + num_k - 1) for each query and key, (..., num_q, num_k)."""
    num_k = between.shape[-1] - num_q + 1
    return between.unfold(-1, num_k, 1).flip(-2)


def single(x: Tensor) -> Tensor:
    """Return it in single precision or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
