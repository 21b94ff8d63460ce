"""Heartbeats: how ranks notice within a limit that one of them is silent, whatever the others are waiting in.

Each rank writes into the store of this start, every `BEAT_S`, how many times it has done so, its step and its process.
Rank 0 reads those of all others, the others read that of rank 0, so that who notices does not depend on who is silent.
What is compared is whether a count went on between two looks of the observer, by its own monotonic clock: never the
clocks of two hosts, and never more than two intervals for one look, so that an observer that was itself stopped, or its
whole machine, blames nobody.

A beat is a thread, so that a main thread that waits or computes keeps beating. What stops it: a stopped process
(SIGSTOP, a frozen container), a node or network that is gone, and one call of a library that holds the interpreter's
lock for longer than the limit; torch's kernels, its collectives and reads of files let it go.

Traffic at the store for N ranks and an interval: N sets and N checks of 50 bytes, N - 1 reads of one key, one read of
N - 1 keys. With 1,000 ranks that is 1,500 messages a second.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from pretrain.distributed.rendezvous import beat_key, listed
from pretrain.distributed.stopped_process import NOBODY, Process

BEAT_S = 2.0  # between two beats, at most; a quarter of the limit if that is less
CLOSE_S = 5.0  # that the end of a rank waits for the store to take its last word

_SILENT = "hang/silent"  # key of the store: what the first to notice says, and of which ranks
_STORE = "store"

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far this rank is: the steps that its beats carry, from what is set here."""

    steps: Callable[[], int] = lambda: 0


class Beat(NamedTuple):
    """What one rank wrote last. The number 0 is no beat: the rank has ended in order, and owes none."""

    number: int
    step: int
    host: str
    process: Process = NOBODY

    @classmethod
    def read(cls, text: bytes) -> Beat:
        """Return what `str` made; an empty text is that of a rank that has arrived and not begun."""
        if not text:
            return cls(-1, 0, "?")
        number, step, host, process = json.loads(text)
        return cls(number, step, host, Process(*process))

    def __str__(self) -> str:
        return json.dumps([*self])


class Ages:
    """For how long counts have stood still, in seconds of the observer's own looking."""

    def __init__(self, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s, self._clock, self._before = longest_s, clock, clock()
        self._counts: dict[Hashable, int] = {}
        self._ages: dict[Hashable, float] = {}  # seconds

    def look(self, counts: Mapping[Hashable, int]) -> dict[Hashable, float]:
        """Take in the counts of now, and return the ages; one look adds `longest_s` at most."""
        now = self._clock()
        passed, self._before = min(now - self._before, self._longest_s), now
        for key, count in counts.items():
            same = self._counts.get(key) == count
            self._ages[key] = self._ages.get(key, 0.0) + passed if same else 0.0
        self._counts |= counts
        return dict(self._ages)


class Heartbeat:
    """Two threads: one beats and reads over the store, one sees whether the store still answers that one."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        limit_s: float,
        progress: Progress,
        on_silence: Callable[[str], None],  # gets who is silent; called by a thread, on every rank that lives
    ) -> None:
        self._store, self._rank, self._size, self._limit_s = store, rank, size, limit_s
        self._progress, self._on_silence = progress, on_silence
        self._beat_s = min(BEAT_S, limit_s / 4)
        self._others = range(1, size) if rank == 0 else range(1)
        self.live = size  # ranks that are not silent, for rank 0
        self._count = 0
        self._process = Process.of(os.getpid())
        self._store_s = 0.0  # for which the store has not answered
        self._over, self._gone = threading.Event(), threading.Event()  # nothing left to do; the store has ended
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._beat, self._look)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End in order: others do not wait for further beats."""
        self._over.set()
        for thread in self._threads:
            thread.join(CLOSE_S)

    def verdict(self) -> str:
        """Return who is silent, if that is known by now: "" if not. For a thread that a broken connection has woken.

        May block where the store does not answer; that has `is_cut_off` say first.
        """
        return self._told()[0]

    def kill_silent(self) -> list[int]:
        """Kill the processes of silent ranks on this host, and return those ranks.

        For the end of this rank: nobody learns more of them, and torchrun would wait 30 s for each.
        """
        ranks = self._told()[1]
        beats = map(Beat.read, self._store.multi_get([beat_key(rank) for rank in ranks]))
        here = socket.gethostname()
        return [rank for rank, beat in zip(ranks, beats, strict=True) if beat.host == here and beat.process.kill()]

    def _told(self) -> tuple[str, list[int]]:
        """Return who is silent, in words and as ranks."""
        if not self._store.check([_SILENT]):
            return "", []
        words, ranks = json.loads(self._store.get(_SILENT))
        return words, ranks

    @property
    def is_cut_off(self) -> bool:
        """Whether the store has not answered for half of the limit."""
        return self._store_s > self._limit_s / 2

    @property
    def cut_off(self) -> str:
        """Say that the store does not answer."""
        held = "which rank 0 holds, or torchrun's agent on its node"
        return f"{self._within}: rank 0 of {self._size} does not answer: the store, {held}, is stopped or unreachable"

    @property
    def _within(self) -> str:
        return f"no heartbeat within run.heartbeat_timeout_s={self._limit_s:g}"

    def _beat(self) -> None:
        ages = Ages(2 * self._beat_s)
        try:
            while not self._over.wait(self._beat_s):
                self._write(self._count + 1)
                if said := self.verdict() or self._silent(ages):
                    self._on_silence(said)
                    return
            self._write(0)
        except RuntimeError as error:  # rank 0 has ended, and the store with it
            self._gone.set()
            log.debug("the store is gone:", exc_info=error)

    def _write(self, number: int) -> None:
        beat = Beat(number, self._progress.steps(), socket.gethostname(), self._process)
        self._store.set(beat_key(self._rank), str(beat))
        self._count = number

    def _silent(self, ages: Ages) -> str:
        """Read the others' beats, and say which are silent; the words of the first to notice count for all."""
        texts = self._store.multi_get([beat_key(rank) for rank in self._others])
        beats = {rank: Beat.read(text) for rank, text in zip(self._others, texts, strict=True)}
        found = ages.look({rank: beat.number for rank, beat in beats.items()})
        late = {rank: beat for rank, beat in beats.items() if beat.number and found[rank] > self._limit_s}
        if not late:
            return ""
        self.live = self._size - len(late)
        (_, first), *_ = late.items()
        where = f"on host {first.host}, last seen at step {first.step} (rank {self._rank}: {self._progress.steps()})"
        own = f"{self._within} of {listed([str(rank) for rank in late])} of {self._size}, {where}: stopped, or gone"
        words, _ = json.loads(self._store.compare_set(_SILENT, "", json.dumps([own, [*late]])))
        return words

    def _look(self) -> None:
        """See whether the thread that talks to the store comes back from it."""
        ages = Ages(2 * self._beat_s)
        while not self._over.wait(self._beat_s) and not self._gone.is_set():
            self._store_s = ages.look({_STORE: self._count})[_STORE]
            if self._store_s > self._limit_s:
                self._on_silence(self.cut_off)
                return
