"""Stragglers: which rank the others wait for in each step, while training goes on.

All ranks of a step take the same time, for they wait for one another; what tells them apart is the share of it in which
a rank waits for no other: it is busy, or asleep. A thread looks twenty times a second whether the main thread

- is in the exchange with which each step begins (it waits),
- has ended its step and not begun the next one, as while it reads data (it does not),
- is in the step: then it waits while a collective over gloo is under way, by torch's flight recorder.

So a rank that is late anywhere on its host is found: in data, forward, backward, optimizer or hooks. Collectives of
NCCL run on the device while the host goes on: on GPUs a late host is found, because the others wait in the exchange; a
GPU that computes more slowly than others is not. Evaluations and saves, in which rank 0 does more, are left out.
Without the recorder (TORCH_FR_BUFFER_SIZE=0) waits within a step are not seen.
"""

from __future__ import annotations

import logging
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pretrain.distributed.recorder import seems_to_wait
from pretrain.distributed.world import World

SAMPLE_S = 0.05  # between two looks
LEAST_S = 2.0  # of looking that a judgement needs; shorter intervals between log lines are put together
LEAST_SHARE = 0.02  # of the time, below which a busy share is not told from none
QUIET = 10  # judgements for which a rank is not named again

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """What one rank says of itself since the last judgement."""

    busy_s: float  # in which it waited for no other rank
    watched_s: float
    host: str


class _Place(Enum):
    exchange = "in the exchange that begins a step"
    step = "in a step"
    between = "between steps"


def slow_ranks(readings: Sequence[Reading], ratio: float) -> dict[int, float]:
    """Return the ranks whose busy share is more than `ratio` times the median of the others', with that number."""
    shares = [max(each.busy_s / each.watched_s, LEAST_SHARE) for each in readings]
    others = [statistics.median(shares[:rank] + shares[rank + 1 :]) for rank in range(len(shares))]
    found = {rank: share / other for rank, (share, other) in enumerate(zip(shares, others, strict=True))}
    return {rank: times for rank, times in found.items() if times > ratio}


@dataclass(frozen=True, kw_only=True)
class _Marked(World):
    """A world whose sums of integers say when they begin and end."""

    inner: World
    mark: Callable[[_Place], None]

    def sum_ints(self, *values: int) -> list[int]:
        self.mark(_Place.exchange)
        sums = self.inner.sum_ints(*values)
        self.mark(_Place.step)
        return sums


class Stragglers:
    """The share of time in which this rank waits for no other, and the comparison with the other ranks.

    `ratio` None, or one rank alone: nothing is measured.
    """

    def __init__(self, world: World, ratio: float | None, pausing: Callable[[], bool] = lambda: False) -> None:
        self._world, self._ratio, self._pausing = world, ratio if world.size > 1 else None, pausing
        self._place = _Place.between
        self._busy_s = self._watched_s = 0.0
        self._judged = 0
        self._named: dict[int, int] = {}  # rank -> the judgement at which it was
        self._over = threading.Event()

    @contextmanager
    def measured(self) -> Iterator[World]:
        """While in here, measure a loop that begins each step with `sum_ints` of the world that this gives."""
        if self._ratio is None:
            yield self._world
            return
        looking = threading.Thread(target=self._look, daemon=True)
        looking.start()
        rank, size, device = self._world.rank, self._world.size, self._world.device
        try:
            yield _Marked(rank=rank, size=size, device=device, inner=self._world, mark=self._mark)
        finally:
            self._over.set()
            looking.join()

    def end_step(self) -> None:
        """Say that the collectives of a step are over."""
        self._mark(_Place.between)

    def compare(self) -> None:
        """Warn of ranks that the others wait for; all ranks do, and rank 0 is heard. A collective, for log steps."""
        if self._ratio is None:
            return
        own = Reading(round(self._busy_s, 2), round(self._watched_s, 2), socket.gethostname())
        readings = [Reading(*each) for each in self._world.gather(own)]
        if min(each.watched_s for each in readings) < LEAST_S:
            return
        self._busy_s = self._watched_s = 0.0
        self._judged += 1
        for rank, times in slow_ranks(readings, self._ratio).items():
            if rank in self._named and self._judged - self._named[rank] < QUIET:
                continue
            self._named[rank] = self._judged
            share = readings[rank].busy_s / readings[rank].watched_s
            log.warning(
                "rank %d on host %s is a straggler: busy for %.0f %% of the time, %.1f times as much as the median of "
                "the others, which wait for it (run.straggler_ratio=%g)",
                *(rank, readings[rank].host, 100 * share, times, self._ratio),
            )

    def _mark(self, place: _Place) -> None:
        self._place = place

    def _look(self) -> None:
        before = time.monotonic()
        while not self._over.wait(SAMPLE_S):
            now = time.monotonic()
            passed, before = now - before, now
            if self._pausing():
                continue
            place = self._place
            waits = place is _Place.exchange or (place is _Place.step and seems_to_wait())
            self._watched_s += passed
            self._busy_s += 0.0 if waits else passed
