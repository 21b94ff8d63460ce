"""Keys and values that a generation keeps, in tensors with room for tokens to come.

Holds no model and no choice of tokens: a step of either kind of model is in `steps`. Letters of shapes:
`models/base.py`; G = H / K is the number of query heads that share a key-value head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.attention.relative import rows_between
from pretrain.models.base import Attend, Bias, Layout

ROOM = 64  # columns for new tokens at first; when they are full, all columns double


class Columns:
    """The columns of left-padded tensors with one row a sequence: sequences of uneven lengths all end in the same one.

    So the newest position of all is one column, a window is a range of columns, and the distances to the newest
    position are the same in all rows. All layers share these columns.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.end = max(lengths)  # the column after the newest position
        self._starts = [self.end - length for length in lengths]  # (S,) the column of each first position
        self._device = device
        rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        columns = torch.cat([torch.arange(start, self.end) for start in self._starts])
        self._places = rows.to(device), columns.to(device)

    def __len__(self) -> int:
        """Return the number of sequences, S."""
        return len(self._starts)

    @property
    def begin(self) -> int:
        """The first column that any sequence has."""
        return min(self._starts)

    def padded(self, x: Tensor, room: int = 0) -> Tensor:
        """Return x (N, K, E), sequences end to end, as (S, K, columns, E) with `room` more columns at the end."""
        rows, columns = self._places
        found = x.new_empty(len(self), x.shape[1], self.end + room, x.shape[2])
        found[:, :, : self.end] = 0  # what a mask hides must be a number
        found[rows, :, columns] = x
        return found

    def mask(self, first: int, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to scores of the columns from `first` on, (S, 1, 1, end - first); None: nothing.

        It is -inf where a sequence has not begun.
        """
        if max(self._starts) <= first:
            return None
        starts = torch.tensor(self._starts, device=self._device)[:, None, None, None]
        unseen = torch.arange(first, self.end, device=self._device) < starts
        return torch.zeros(unseen.shape, dtype=dtype, device=self._device).masked_fill(unseen, float("-inf"))

    def select(self, rows: Sequence[int]) -> None:
        """Let row i become what row rows[i] was."""
        self._starts = [self._starts[row] for row in rows]


class KeyValueCache:
    """The keys and values of one layer's self-attention: an attention backend (`Attend`) that remembers.

    The first call has the tokens of the prompts and leaves them to the backend; each later call has one token a
    sequence, which `columns` has a column for already.
    """

    def __init__(self, columns: Columns, backend: Attend) -> None:
        self._columns = columns
        self._backend = backend
        self._keys: Tensor | None = None  # (rows, K, capacity, E), of which the first S rows are in use
        self._values: Tensor | None = None

    def __call__(
        self,
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
        """Return the attention of the new queries over all keys so far, (Nq, H, E) (see `Attend`)."""
        if self._keys is None or self._values is None:
            self._keys, self._values = (self._columns.padded(x, ROOM) for x in (k, v))
            return self._backend(q, k, v, layout, causal=causal, window=window, dropout=dropout, scale=scale, bias=bias)
        sequences, begin, end = len(self._columns), self._columns.begin, self._columns.end
        if end > self._keys.shape[2]:
            self._keys, self._values = (_doubled(x) for x in (self._keys, self._values))
        for cache, new in ((self._keys, k), (self._values, v)):
            cache[:sequences, :, end - 1] = new
        first = begin if window is None else max(begin, end - window)
        keys, values = (cache[:sequences, :, first:end] for cache in (self._keys, self._values))
        query = q.unflatten(1, (k.shape[1], -1))  # (S, K, G, E): heads of one group are queries of the same keys
        mask = layout.plan(("cached", first, bias is not None), lambda: self._mask(first, query, bias))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale).flatten(1, 2)

    def _mask(self, first: int, query: Tensor, bias: Bias | None) -> Tensor | None:
        """Return what is added to the scores, (S or 1, K, G, columns) or what broadcasts to it; None: nothing."""
        mask = self._columns.mask(first, query.dtype)
        if bias is None:
            return mask
        num_k = self._columns.end - first
        rows = rows_between(bias.distances, 1, num_k, [num_k - 1]).to(query.device, non_blocking=True)  # of the newest
        values = bias.dense(rows, 1, causal=False).to(query.dtype)  # (1, H, 1, columns)
        values = values.squeeze(2).unflatten(1, query.shape[1:3])
        return values if mask is None else mask + values

    def select(self, rows: Tensor, moved: Tensor) -> None:
        """Let row i become what row rows[i] was; `moved` are the i where that is another one. The first call was."""
        assert self._keys is not None and self._values is not None
        seen = slice(self._columns.begin, self._columns.end)
        self._keys, self._values = (_selected(x, rows, moved, seen) for x in (self._keys, self._values))


class SourceCache:
    """The keys and values that one layer's cross-attention has of the sources, however many texts follow each."""

    def __init__(self, columns: Columns, k: Tensor, v: Tensor) -> None:
        """Take keys and values of sources that lie end to end, (Ns, H, E)."""
        self._columns = columns
        self._keys, self._values = columns.padded(k), columns.padded(v)

    def attend(self, q: Tensor, layout: Layout, scale: float | None) -> Tensor:
        """Return the attention of queries (Nq, H, E), as many for each source, over all of its keys."""
        sources, begin = len(self._columns), self._columns.begin
        keys, values = (x[:sources, :, begin:] for x in (self._keys, self._values))
        mask = layout.plan("source", lambda: self._columns.mask(begin, q.dtype))
        query = q.unflatten(0, (sources, -1)).transpose(1, 2)  # (S, H, queries of a source, E)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
        return out.transpose(1, 2).flatten(0, 1)

    def select(self, rows: Tensor, moved: Tensor) -> None:
        """Let source i become what source rows[i] was; `moved` are the i where that is another one."""
        seen = slice(self._columns.begin, self._columns.end)
        self._keys, self._values = (_selected(x, rows, moved, seen) for x in (self._keys, self._values))


def _doubled(x: Tensor) -> Tensor:
    """Return x (rows, K, capacity, E) with as many columns again."""
    return torch.cat([x, torch.empty_like(x)], dim=2)


def _selected(x: Tensor, rows: Tensor, moved: Tensor, seen: slice) -> Tensor:
    """Return x (rows, K, capacity, E) with row i as rows[i] was, in place if there is room: few rows move at a time."""
    if len(rows) > len(x):
        return x.index_select(0, rows)
    if len(moved):
        x[moved, :, seen] = x[rows[moved], :, seen]
    return x
