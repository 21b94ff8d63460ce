"""What a checkpoint is made of: named flat fragments, whoever writes them and whoever reads them.

Holds the types alone. Bytes on disk are in `fragments`; steps are written by `save` and read by `load`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

WEIGHT = "weight"  # the kind of a fragment that holds fp32 weights; other kinds are the optimizer's own state names


class Fragment(NamedTuple):
    """A run of one flattened tensor: what this rank owns of a weight or of an optimizer moment."""

    name: str  # the parameter's or buffer's name in the trained module
    kind: str  # WEIGHT, or the optimizer's name of the state ("exp_avg", "exp_avg_sq", "momentum_buffer", "step")
    shape: tuple[int, ...]  # of the whole tensor
    start: int  # the first element, counted in the flattened whole tensor
    data: Tensor  # (numel,) on any device, fp32 for floating-point tensors


class Reader(Protocol):
    """A checkpoint as a strategy sees it: any run of any tensor, whatever rank wrote it."""

    def kinds(self, name: str) -> dict[str, torch.Size]:
        """Return the kinds stored for a tensor (weight and moments) and the whole shape of each."""
        ...

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        """Return elements [start, start + numel) of the flattened tensor, (numel,) on the CPU."""
        ...


class Checkpointable(Protocol):
    """The owner of weights and moments that can be saved: a strategy, whatever engine it drives."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank writes of weights, buffers and moments; over all ranks each element comes once."""
        ...

    def load_fragments(self, read: Reader) -> None:
        """Fill weights, buffers and moments from a checkpoint that any strategy wrote at any world size.

        Also from initial or released weights, which have no moments: those begin at zero.
        """
        ...

    def state(self) -> dict[str, float]:
        """Return the scalars beside the fragments (the loss scale), equal on all ranks."""
        ...

    def load_state(self, state: dict[str, float]) -> None:
        """Restore what `state` returned; called before `load_fragments`."""
        ...
