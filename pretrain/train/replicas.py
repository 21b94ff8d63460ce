"""Replicas that must be equal bit for bit: a rank whose copy differs is named before anything of it is saved.

Holds the digests of tensors and their comparison over ranks; which tensors are replicas, each strategy says itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import Fragment
from pretrain.distributed.world import World
from pretrain.errors import check
from pretrain.strategy.base import Strategy
from pretrain.train.loop import TrainState

BLOCK = 1 << 16  # elements whose digest a CPU computes at a time: they stay in its cache
DEVICE_BLOCK = 1 << 22  # elsewhere: 64 MiB of integers
SHOWN = 8  # ranks in a message

log = logging.getLogger(__name__)

Digest = tuple[int, int]


@dataclass(kw_only=True)
class ReplicasConfig:
    """When ranks that hold the same weights or moments compare them, bit for bit."""

    check: bool = True  # before each save: a rank that differs is named, nothing is saved, and the exit code is 5
    every: int = 1000  # optimizer steps after which they are compared as well; 0: before saves only

    def __post_init__(self) -> None:
        check(self.every >= 0, "replicas.every", self.every, "1 or more optimizer steps, or 0: before saves only")


class Replicas:
    """The comparison of a run. Ranks call its methods together, at the same step."""

    def __init__(self, cfg: ReplicasConfig, strategy: Strategy, state: TrainState, world: World) -> None:
        self.cfg = cfg
        self.strategy = strategy
        self.state = state  # where the run stands; it moves on with the run
        self.world = world
        self._compared = -1  # the newest step at which they were equal
        self._said = False

    @property
    def is_due(self) -> bool:
        """Whether this step is one of every few at which ranks compare, saved or not."""
        return self.cfg.check and self.cfg.every > 0 and self.state.step % self.cfg.every == 0

    def difference(self) -> str | None:
        """Return which rank holds what differently from the others, None if all is equal. A collective.

        Costs one read of what is replicated, and one exchange of two hashes a rank; digests travel only if these
        differ. All ranks return the same words.
        """
        if not self.cfg.check or self.world.size == 1 or self.state.step == self._compared:
            return None
        held = list(self.strategy.replicated())
        digests = digests_of(fragment.data for fragment in held)
        keys = [f"{fragment.name} ({fragment.kind}) {fragment.start}" for fragment in held]
        groups: dict[str, list[int]] = {}  # ranks that hold the same tensors, or the same parts of them
        answers = self.world.gather([_hash(keys), _hash(digests)] if held else None)
        for rank, answer in enumerate(answers):
            if answer:
                groups.setdefault(answer[0], []).append(rank)
        if not self._said and all(len(ranks) == 1 for ranks in groups.values()):
            self._said = True
            if self.world.is_first:
                log.info("replicas.check: no two ranks hold the same weights under this strategy: nothing to compare")
        differing = [ranks for ranks in groups.values() if len({answers[rank][1] for rank in ranks}) > 1]
        if not differing:
            self._compared = self.state.step
            return None
        own = next((ranks for ranks in differing if self.world.rank in ranks), None)
        said = own and [socket.gethostname(), digests, _names(held) if self.world.rank == own[0] else None]
        details = self.world.gather(said)
        return self._described([_Group.of(ranks, details) for ranks in differing])

    def _described(self, groups: list[_Group]) -> str:
        lines = [line for group in groups for line in group.lines()]
        more = f"; and {len(lines) - SHOWN} more ranks" if len(lines) > SHOWN else ""
        return (
            f"step {self.state.step}: replicas are not equal: {'; '.join(lines[:SHOWN])}{more}. Nothing of this step "
            "is saved. Memory or a processor there may be at fault: examine the host or leave it out, and start again: "
            "the run resumes from its newest checkpoint"
        )


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Ranks that should hold the same, and what they hold."""

    ranks: list[int]
    hosts: list[str]
    names: list[str]  # of the tensors
    digests: list[list[Any]]  # of each rank, in the order of the names

    @classmethod
    def of(cls, ranks: list[int], details: list[Any]) -> _Group:
        own = [details[rank] for rank in ranks]
        return cls(ranks=ranks, hosts=[one[0] for one in own], names=own[0][2], digests=[one[1] for one in own])

    def lines(self) -> list[str]:
        """Say of each rank outvoted by the others in which tensors it is, and which ranks no vote can tell apart."""
        outvoted: dict[int, list[str]] = {}
        undecided: list[str] = []
        for name, *column in zip(self.names, *self.digests, strict=True):
            values = [tuple(digest) for digest in column]
            [(usual, votes)] = Counter(values).most_common(1)
            if 2 * votes <= len(values):
                undecided.append(name)
                continue
            for place, value in enumerate(values):
                if value != usual:
                    outvoted.setdefault(place, []).append(name)
        lines = [
            f"{self._who(place)} differs from the others in {self._few(wrong)}" for place, wrong in outvoted.items()
        ]
        if undecided:
            all_ranks = " and ".join(map(self._who, range(len(self.ranks))))
            lines.append(f"{all_ranks} differ in {self._few(undecided)}, and no majority says which of them is wrong")
        return lines

    def _who(self, place: int) -> str:
        return f"rank {self.ranks[place]} on host {self.hosts[place]}"

    def _few(self, names: list[str]) -> str:
        more = f", the first of {len(names)} tensors" if len(names) > 1 else ""
        return f"{names[0]}{more}"


def digests_of(tensors: Iterable[Tensor]) -> list[Digest]:
    """Return the digest of each flat tensor, computed where it is; the host waits once a device."""
    waiting: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for place, tensor in enumerate(tensors):
        waiting.setdefault(tensor.device, []).append((place, digest(tensor)))
    found: dict[int, Digest] = {}
    for pairs in waiting.values():
        values = torch.stack([value for _, value in pairs]).tolist()
        found |= {place: (plain, mixed) for (place, _), (plain, mixed) in zip(pairs, values, strict=True)}
    return [found[place] for place in sorted(found)]


def digest(tensor: Tensor) -> Tensor:
    """Return two sums over the bits of a flat tensor (elements,), as (2,) int64 on its device.

    The bits of element i are an integer x_i of at most 32 bits; elements of 64 bits count as two. The sums are those of
    x_i and of (2 i + 1) x_i modulo 2^64: integers, so their order does not matter, unlike that of floats.

    Any change of one or two elements of a tensor with at most 2^31 changes the digest: one flipped bit, two flips that
    cancel in a sum, or two values that change places. Let d and e, not 0 and below 2^32 in size, be the changes of
    elements i and j. The first sum changes by d + e, whose size is below 2^33; so it stays only if e = -d (a single
    change, e = 0, always shows). Then the second changes by 2 (i - j) d, which is not 0, and whose size is below
    2 x 2^31 x 2^32 = 2^64: it is not 0 modulo 2^64 either. Of other changes one in about 2^64 is not seen.
    """
    bits = tensor.view(_INTEGERS.get(tensor.element_size(), torch.int32))
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    size = BLOCK if tensor.device.type == "cpu" else DEVICE_BLOCK
    odd = torch.arange(1, 2 * min(size, bits.numel()) + 1, 2, dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), size):
        block = bits[start : start + size].to(torch.int64)
        plain = block.sum()
        sums[0] += plain
        sums[1] += block.mul_(odd[: len(block)]).sum() + 2 * start * plain
    return sums


_INTEGERS = {1: torch.int8, 2: torch.int16}  # by bytes of an element


def _names(held: Sequence[Fragment]) -> list[str]:
    return [f"{fragment.name} ({fragment.kind})" for fragment in held]


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
