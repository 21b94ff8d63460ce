"""Weights with differences of low rank added to their matrices, as they are read (Hu et al. 2021, LoRA).

Holds the sum alone: adapters that learn are fine-tuning's, those in files are in `hub/adapter_files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT


class LowRank(NamedTuple):
    """A difference of some rows of a matrix: scale B A."""

    row: int  # the first of them
    up: Tensor  # B, (rows, r)
    down: Tensor  # A, (r, columns)
    scale: float

    @property
    def end(self) -> int:
        """The row after the last of them."""
        return self.row + len(self.up)

    def elements(self, start: int, numel: int) -> tuple[int, Tensor]:
        """Return the difference where it overlaps a run of the flattened matrix: the place in the run, and values."""
        columns = self.down.shape[1]
        low, high = max(start, self.row * columns), min(start + numel, self.end * columns)
        if low >= high:
            return 0, self.up.new_empty(0)
        first, last = low // columns, -(-high // columns)
        values = torch.mm(self.up[first - self.row : last - self.row], self.down).mul_(self.scale).reshape(-1)
        return low - start, values[low - first * columns :][: high - low]


class Summed:
    """The weights of a reader with differences added; see `Reader` in `checkpoint.base`."""

    def __init__(
        self, weights: Any, differences: Mapping[str, Sequence[LowRank]], own: Mapping[str, Tensor] | None = None
    ) -> None:
        """`weights` is a reader that knows its `weight_shapes`; the tensors `own` take the place of its, or are new."""
        self.weights = weights
        self.differences = differences
        self.own = own or {}

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Return the shape of every weight and buffer by name."""
        return self.weights.weight_shapes() | {name: tensor.shape for name, tensor in self.own.items()}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self.weight_shapes()[name]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        if name in self.own:
            return self.own[name].reshape(-1)[start : start + numel]
        values = self.weights(name, kind, start, numel)
        for difference in self.differences.get(name, ()):
            place, added = difference.elements(start, numel)
            values[place : place + len(added)] += added
        return values
