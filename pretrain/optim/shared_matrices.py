"""Matrices that ranks orthogonalise for each other: each matrix is brought together on one rank, its owner.

Holds who owns which matrix and how parts travel; how a strategy cuts matrices is told in `Piece`s, momentum and
weights are Muon's.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pretrain.distributed.world import World
from pretrain.optim.newton_schulz import flops, orthogonalize_


class Piece(NamedTuple):
    """What this rank's optimizer holds of a matrix: elements [start, start + numel) of it, flattened."""

    shape: torch.Size  # (rows, columns) of the whole matrix
    start: int
    numel: int  # 0 if other ranks hold all of it
    holder: Tensor  # among the optimizer's parameters; its gradient and moments are laid out like it
    of: Callable[[Tensor], Tensor]  # the piece's elements of the holder, its gradient or a moment: a view (numel,)


def whole(matrix: nn.Parameter) -> Piece:
    """Return the piece of a rank that holds all of a matrix."""
    return Piece(matrix.shape, 0, matrix.numel(), matrix, lambda tensor: tensor.detach().view(-1))


@runtime_checkable
class SharesMatrices(Protocol):
    """An optimizer that needs matrices whole, and lets ranks work for each other."""

    def matrices(self) -> list[nn.Parameter]:
        """Return these matrices; called before an engine puts its own tensors in their place."""
        ...

    def share(self, world: World, pieces: list[Piece], replica_ranks: int) -> None:
        """Say what this rank holds of each matrix; a collective.

        Each `replica_ranks` ranks in a row hold all of every matrix between them: 1 where every rank does.
        """
        ...


class SharedMatrices:
    """The matrices of all ranks, dealt out to owners so that each has about the same work.

    With M elements in all matrices, P ranks and S of them to a replica, a rank sends at most 2 M / S bytes in bf16 to
    owners of its replica (nothing if S is 1), and receives 2 M / S bytes of results: 2 bytes an element that it holds.
    Beside this it holds 2 M / P bytes of whole matrices.
    """

    def __init__(self, world: World, pieces: list[Piece], replica_ranks: int, steps: int) -> None:
        self.world = world
        self.pieces = pieces
        self.steps = steps
        self.spans = world.gather([(piece.start, piece.numel) for piece in pieces])  # by rank, then by matrix
        self.owners = deal([flops(piece.shape[0], piece.shape[1], steps) for piece in pieces], world.size)
        first = world.rank // replica_ranks * replica_ranks
        self.replica = range(first, first + replica_ranks)

    def orthogonalized(self, updates: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return this rank's pieces of the orthogonalised matrices, for its pieces (numel,) of the matrices themselves.

        A collective: keys are the numbers of matrices, the same ones in the same order on every rank. The iteration
        has the precision of the pieces.
        """
        if not updates:
            return {}
        owned = [[i for i in updates if self.owners[i] == rank] for rank in range(self.world.size)]
        nothing = torch.empty(0, dtype=next(iter(updates.values())).dtype, device=self.world.device)
        batches, matrices = self._batches(owned[self.world.rank], nothing)
        self._bring_together(updates, owned, matrices, nothing)
        for batch in batches:
            orthogonalize_(batch, self.steps)
        return self._hand_out(matrices, owned, nothing)

    def _batches(self, own: list[int], nothing: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Return a batch (N, R, C) for each shape of own matrices, and by number the matrices, flat, as views of it."""
        by_shape: dict[torch.Size, list[int]] = {}
        for i in own:
            by_shape.setdefault(self.pieces[i].shape, []).append(i)
        batches, matrices = [], {}
        for shape, numbers in by_shape.items():
            batch = nothing.new_empty(len(numbers), *shape)
            batches.append(batch)
            matrices |= zip(numbers, batch.flatten(1).unbind(), strict=True)
        return batches, matrices

    def _bring_together(
        self, updates: dict[int, Tensor], owned: list[list[int]], matrices: dict[int, Tensor], nothing: Tensor
    ) -> None:
        """Fill own matrices from the ranks of this replica."""
        mine, own = self.spans[self.world.rank], owned[self.world.rank]
        sizes_to, sizes_from = [0] * self.world.size, [0] * self.world.size
        for rank in self.replica:
            sizes_to[rank] = sum(mine[i][1] for i in owned[rank])
            sizes_from[rank] = sum(self.spans[rank][i][1] for i in own)
        sent = [updates[i].to(nothing.device) for rank in self.replica for i in owned[rank]]
        received = self.world.all_to_all(torch.cat([nothing, *sent]), sizes_to, sizes_from)
        parts = [matrices[i].narrow(0, *self.spans[rank][i]) for rank in self.replica for i in own]
        for part, value in zip(parts, received.split([part.numel() for part in parts]), strict=True):
            part.copy_(value)

    def _hand_out(self, matrices: dict[int, Tensor], owned: list[list[int]], nothing: Tensor) -> dict[int, Tensor]:
        """Return this rank's piece of every matrix, and send those of own matrices to all that hold one."""
        mine, own = self.spans[self.world.rank], owned[self.world.rank]
        sizes_to = [sum(spans[i][1] for i in own) for spans in self.spans]
        sizes_from = [sum(mine[i][1] for i in numbers) for numbers in owned]
        sent = [matrices[i].narrow(0, *spans[i]) for spans in self.spans for i in own]
        received = self.world.all_to_all(torch.cat([nothing, *sent]), sizes_to, sizes_from)
        order = [i for numbers in owned for i in numbers]
        return dict(zip(order, received.split([mine[i][1] for i in order]), strict=True))


def deal(costs: list[int], ranks: int) -> list[int]:
    """Return the owner of each piece of work: the costliest first, each to the rank that has least so far.

    The largest share is at most 4/3 of the smallest possible one (Graham 1969).
    """
    owners, loads = [0] * len(costs), [(0, rank) for rank in range(ranks)]
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        load, owner = loads[0]
        owners[number] = owner
        heapq.heapreplace(loads, (load + costs[number], owner))
    return owners
