"""Relative positions as DeBERTa has them (He et al. 2021, section 3.1): tokens meet the vectors of distances.

Holds what is added to scores and no attention: the backends add it, and `models/disentangled_attention` projects the
vectors. Nothing here is as large as the stream squared. Letter of shapes: P rows of the table of distances.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.models.attention.relative import pairs, single
from pretrain.models.base import Cut


class LogBuckets(NamedTuple):
    """How distances share the rows of DeBERTa's table, in which keys after the query come first; see `Distances`."""

    buckets: int | None  # of distances on either side (He et al. 2021, v2); None: each distance has a row of its own
    max_distance: int  # positions; from there on all on one side share a row
    first: int = 0  # row of the whole table that the first one of this part is

    @property
    def farthest(self) -> int:
        """Positions; from there on all distances on one side share a row."""
        return self.max_distance

    @property
    def side(self) -> int:
        """Rows of either side of the whole table; that of distance 0 is the first of those of keys before the query."""
        return self.max_distance if self.buckets is None else self.buckets

    def rows(self, relative: Tensor) -> Tensor:
        """Return the row of each position of a key minus that of its query, int64 of the same shape.

        Half of the buckets of a side hold one distance each, the others grow by a constant factor up to
        `max_distance`. Computed in fp32 and rounded up, as every released DeBERTa was trained; `relative` lies on the
        CPU, as the logarithms of a GPU may fall on the other side of a limit between two buckets.
        """
        behind = (-relative).clamp(-self.max_distance, self.max_distance)
        if self.buckets is not None:
            exact, distance = self.buckets // 2, behind.abs()
            whole = torch.log(torch.tensor((self.max_distance - 1) / exact))
            growth = torch.log(distance.clamp(min=exact) / exact) / whole
            shared = exact + (growth * (exact - 1)).ceil().long()
            behind = torch.where(distance <= exact, behind, shared * behind.sign())
        return (behind + self.side).clamp(0, 2 * self.side - 1) - self.first

    def reached(self, length: int) -> range:
        """Return rows of the whole table that suffice for sequences of `length` tokens."""
        exact = self.side if self.buckets is None else self.buckets // 2
        reach = length - 1 if length <= exact else self.side
        return range(self.side - reach, min(self.side + reach + 1, 2 * self.side))


class DistanceVectors(NamedTuple):
    """The vectors of distances, which are the same in all layers: rows of one table."""

    vectors: Tensor  # (P, D)
    distances: LogBuckets

    @classmethod
    def of(cls, table: Tensor, distances: LogBuckets, length: int) -> DistanceVectors:
        """Return those rows of the whole `table` that sequences of `length` tokens need."""
        reached = distances.reached(length)
        return cls(table[reached.start : reached.stop], distances._replace(first=reached.start))


class DisentangledBias(NamedTuple):
    """What a query's token adds for a distance, and what a key's token adds; at least one of the two. See `Bias`."""

    distances: LogBuckets
    of_queries: Tensor | None  # (Nq, H, P), content to position: scaled products of queries and keys of distances
    of_keys: Tensor | None  # (Nk, H, P), position to content: scaled products of keys and queries of distances

    def at(self, head: Tensor, q: Tensor, k: Tensor, row: Tensor) -> Tensor:
        """Return what a row of the queries and one of the keys add; see `Bias`."""
        of_query = None if self.of_queries is None else self.of_queries[q, head, row]
        of_key = None if self.of_keys is None else self.of_keys[k, head, row]
        return _sum(of_query, of_key)

    def dense(self, rows: Tensor, num_q: int, *, causal: bool) -> Tensor:
        """Return what is added in sequences that lie end to end, (B, H, num_q, num_k); see `Bias`."""
        index = pairs(rows, num_q).unsqueeze(1)  # (B or 1, 1, num_q, num_k)
        of_queries = None if self.of_queries is None else _looked_up(self.of_queries, index)
        of_keys = None if self.of_keys is None else _looked_up(self.of_keys, index.mT).mT
        added = _sum(of_queries, of_keys)
        if causal:
            later = torch.ones(index.shape[-2:], dtype=torch.bool, device=index.device).triu(1)
            added = added.masked_fill(later, float("-inf"))
        return added

    def cut(self, queries: Cut, keys: Cut) -> Iterable[DisentangledBias]:
        """Return the bias of each part; see `Bias`."""
        of_queries = repeat(None) if self.of_queries is None else queries(self.of_queries)
        of_keys = repeat(None) if self.of_keys is None else keys(self.of_keys)
        return (DisentangledBias(self.distances, *part) for part in zip(of_queries, of_keys, strict=False))

    def single(self) -> DisentangledBias:
        """Return it in single precision or better."""
        return DisentangledBias(self.distances, *(x if x is None else single(x) for x in self[1:]))


def _sum(of_queries: Tensor | None, of_keys: Tensor | None) -> Tensor:
    if of_queries is None or of_keys is None:
        found = of_queries if of_keys is None else of_keys
        assert found is not None
        return found
    return of_queries + of_keys


def _looked_up(values: Tensor, index: Tensor) -> Tensor:
    """Return the values (B T, H, P) at an index (B or 1, 1, T, T') of rows, (B, H, T, T')."""
    dense = values.unflatten(0, (-1, index.shape[2])).transpose(1, 2)  # (B, H, T, P)
    return dense.gather(-1, index.expand(*dense.shape[:2], -1, -1))
