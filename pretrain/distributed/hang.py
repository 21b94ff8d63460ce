"""A hang: how a rank notices that a collective does not end, which ranks are silent, and an end that says so.

Holds the watch that each rank keeps over its collectives. Errors that collectives raise by themselves are told apart in
`rendezvous`; what is kept of a run that ends so is for `train/session` to say.

The limits, one above the other. `limit_s` is that of collectives over gloo: the waiting thread raises. What waits on a
device raises nothing: kernels of NCCL never end, and the host is stuck in whatever reads the device next. So a thread
looks at the numbers of begun and ended collectives, and ends the process `GRACE_S` after the same limit. NCCL's own
limit (`device_limit`) is above both, for its watchdog ends the process by SIGABRT and names nobody.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from pretrain.distributed.heartbeat import Heartbeat, Progress
from pretrain.distributed.mismatch import told
from pretrain.distributed.recorder import TRACE, keep_record, under_way
from pretrain.distributed.rendezvous import LEAVE_S, POLL_S, leave, listed, not_ended, who
from pretrain.errors import HeadwaterError, Mismatched, TimedOut

# Seconds, at most; less under limits of seconds.
GRACE_S = 60.0  # that a thread which can raise has to end its process in order
ASK_S = 2.0  # in which a rank that gave up asks, once others have lost it
ANSWER_S = 15.0  # in which a rank says where it is
UNWIND_S = 3.0  # in which a main thread that lost another rank ends its process in order
LOOK_S = 5.0  # between two looks at the collectives under way, and at whether somebody asks

_ASKED, _ANSWERED, _WAITING, _VERDICT = "hang/asked", "hang/answered", "hang/waiting", "hang/verdict"  # in the store

TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable of the ranks that it starts

T = TypeVar("T")

log = logging.getLogger(__name__)


def device_limit(limit: timedelta) -> timedelta:
    """Return the limit of NCCL's own watchdog, above that of the host and the grace after it."""
    return 2 * limit + timedelta(seconds=2 * GRACE_S)


class Watch:
    """Two threads of a rank that train nothing: one answers when another rank asks where this one is, one looks.

    `store` is a connection of their own: one that waits would hold up the others of its process.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        limit_s: float,
        heartbeat_s: float | None,  # limit of the heartbeat, below that of a collective; None: no rank beats
        progress: Progress,
        files: Path | None,  # where stacks and the flight recorder's record go; None: nowhere
        on_end: Callable[[int], None] | None,  # gets the exit code before the process ends
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._limit_s, self._files, self._on_end = limit_s, files, on_end
        self._look_s, self._answer_s = min(LOOK_S, limit_s / 4), min(ANSWER_S, limit_s)
        self._end_s = limit_s + min(GRACE_S, 4 * limit_s)
        self._over, self._lost = threading.Event(), threading.Event()  # nothing is left to do; no store to ask
        self._hangs = False  # this rank asked, or was asked, where ranks are
        self._silenced = False  # heartbeats tell who is silent
        self._waited = False  # for other ranks, in a collective that has failed by now
        self._waits: deque[float] = deque(maxlen=2)  # seconds that a collective was under way, at the newest looks
        self._main = threading.main_thread().ident
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._listen, self._look)]
        for thread in self._threads:
            thread.start()
        self._ending, self._leaving = threading.Lock(), threading.Lock()  # taken for good by the thread that does it
        self._heartbeat = None
        if heartbeat_s:
            self._heartbeat = Heartbeat(
                store, rank, size, limit_s=heartbeat_s, progress=progress, on_silence=self._end_silenced
            )

    def close(self) -> None:
        """End the threads, before the interpreter is taken down around them."""
        self._over.set()
        if self._heartbeat:
            self._heartbeat.close()
        for thread in self._threads:
            thread.join(0 if self._lost.is_set() else ANSWER_S)  # it writes what is kept, or waits for the store

    def explained(self, reason: HeadwaterError) -> HeadwaterError:
        """Return what a collective raised because of other ranks with the names of those that are silent.

        A rank that gives up closes its connections, so that others may lose it before they give up themselves: where
        they have waited for long, they tell the same, if it asks in time. All that wait end together, after seconds.
        """
        self._waited = True
        if isinstance(reason, Mismatched):  # which all ranks know at once
            self._hangs = True
            self._store.add(_WAITING, 1)
            self._keep()
            return Mismatched(f"{who(self._rank)}: {told(self._store, self._rank, self._size, reason, ANSWER_S)}")
        if self._heartbeat and (silent := self._heard()):
            self._hangs = self._silenced = True
            self._keep()
            return TimedOut(f"{who(self._rank)}: {silent}")
        long = max(tuple(self._waits), default=0.0) > self._limit_s / 4
        hangs = isinstance(reason, TimedOut) or (long and self._within(ASK_S + LOOK_S, self._is_asked))
        if not hangs:
            return reason
        self._hangs = True
        silent = self._within(2 * self._answer_s, self._verdict) or "rank 0, which holds the store, does not answer"
        waited = reason if isinstance(reason, TimedOut) else f"{who(self._rank)}: {not_ended(self._limit_s)}"
        return TimedOut(f"{waited}; {silent}")

    def _heard(self) -> str:
        """Return who is silent by the heartbeats, "" if nobody: where one rank ends for it, others lose that one."""
        assert self._heartbeat
        if self._heartbeat.is_cut_off:
            self._lost.set()
            return self._heartbeat.cut_off
        return self._within(ASK_S, self._heartbeat.verdict) or ""

    def leave(self) -> None:
        """Let the other ranks read the verdict: the store ends with rank 0, so that it goes last.

        Without a hang the store is nobody's concern, and torch prints a page where it is gone already.
        """
        if self._rank and not self._hangs:
            return
        if not self._leaving.acquire(blocking=False):  # another thread does; counted twice, rank 0 would go too soon
            self._over.wait(LEAVE_S)
            return

        def wait() -> None:
            live = self._heartbeat.live if self._heartbeat and self._silenced else self._store.add(_WAITING, 0)
            leave(self._store, self._rank, live, key="hang/left")

        self._within(LEAVE_S, wait)
        if self._heartbeat and self._silenced and TORCHRUN in os.environ:  # our launchers know of the silent one
            for rank in self._within(ASK_S, self._heartbeat.kill_silent) or ():
                print(f"{who(self._rank)}: killed rank {rank}, which torchrun would wait for", file=sys.stderr)

    def _within(self, seconds: float, ask: Callable[[], T]) -> T | None:
        """Return what the store says; None without a word of it in time: rank 0, which holds it, may be the silent one.

        Then whoever waits for it waits for ever. So another thread does, and nobody asks again.
        """
        if self._lost.is_set():
            return None
        said: list[T] = []

        def wait() -> None:
            try:
                said.append(ask())
            except RuntimeError as error:
                log.debug("no word of the other ranks:", exc_info=error)

        asking = threading.Thread(target=wait, daemon=True)
        asking.start()
        asking.join(seconds)
        if not said:
            self._lost.set()
        return said[0] if said else None

    def _is_asked(self) -> bool:
        deadline = time.monotonic() + ASK_S
        while not (asked := self._store.check([_ASKED])) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return asked

    def _listen(self) -> None:
        """Answer once, when a rank asks all others where they are."""
        try:
            while not self._over.wait(self._look_s):
                if self._store.check([_ASKED]):
                    self._hangs = True
                    waits = self._waited or bool(under_way())
                    self._store.set(f"hang/{self._rank}", json.dumps({"waits": waits, "at": self._place()}))
                    self._store.add(_WAITING, int(waits))
                    self._store.add(_ANSWERED, 1)
                    self._keep()
                    return
        except RuntimeError as error:  # rank 0 has ended, and the store with it
            log.debug("the store is gone:", exc_info=error)

    def _look(self) -> None:
        """End the process once a collective has been under way for too long."""
        since: dict[str, tuple[int, float]] = {}  # of groups with a collective under way: the last that ended, and when
        while not self._over.wait(self._look_s):
            now, before = time.monotonic(), since
            since = {
                group: before[group] if group in before and before[group][0] == ended else (ended, now)
                for group, ended in under_way().items()
            }
            self._waits.append(max((now - began for _, began in since.values()), default=0.0))
            if self._waits[-1] > self._end_s:
                error = self.explained(TimedOut(f"{who(self._rank)}: {not_ended(self._limit_s)}"))
                self._keep()
                self._end(error)

    def _end_silenced(self, silent: str) -> None:
        """End the process because of a silent rank, unless the main thread is on its way out for the same reason."""
        self._hangs = self._silenced = True
        self._keep()
        if self._heartbeat and self._heartbeat.is_cut_off:
            self._lost.set()
        if self._waited and self._over.wait(UNWIND_S):
            return
        self._end(TimedOut(f"{who(self._rank)}: {silent}"))

    def _end(self, error: HeadwaterError) -> None:
        """End the process with the exit code of a hang, whatever its main thread is stuck in."""
        if not self._ending.acquire(blocking=False):
            return
        if self._on_end:
            self._on_end(error.exit_code)
        print(error, file=sys.stderr, flush=True)
        self.leave()
        logging.shutdown()
        os._exit(error.exit_code)

    def _verdict(self) -> str:
        """Ask all ranks where they are, and say which are silent; the first rank's words count for all."""
        if self._store.check([_VERDICT]):
            return self._store.get(_VERDICT).decode()
        own = _silent(self._answers(), self._size)
        return self._store.compare_set(_VERDICT, "", own).decode()

    def _answers(self) -> dict[int, dict[str, Any]]:
        """Return what ranks say of themselves, by rank; those that say nothing are missing."""
        self._store.set(_ASKED, "")
        deadline = time.monotonic() + self._answer_s
        while self._store.add(_ANSWERED, 0) < self._size and time.monotonic() < deadline:
            time.sleep(POLL_S)
        there = [rank for rank in range(self._size) if self._store.check([f"hang/{rank}"])]
        return {rank: json.loads(self._store.get(f"hang/{rank}")) for rank in there}

    def _place(self) -> str:
        """Say where the main thread is."""
        frame = sys._current_frames()[self._main or 0]
        return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}, in {frame.f_code.co_name}"

    def _keep(self) -> None:
        """Write the stacks of all threads and the flight recorder's record of the newest collectives."""
        if self._files is None:
            return
        try:
            self._files.mkdir(exist_ok=True)
            with (self._files / f"stacks-rank-{self._rank}.txt").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            keep_record(self._files / f"{TRACE}{self._rank}")
        except OSError as error:  # the disk may be what hangs, or is full
            log.debug("nothing is kept of the hang:", exc_info=error)


def _silent(answers: dict[int, dict[str, Any]], size: int) -> str:
    """Say which ranks are silent by what each says of itself, `waits` and `at`."""
    stopped = [str(rank) for rank in range(size) if rank not in answers]
    busy = [str(rank) for rank, answer in answers.items() if not answer["waits"]]
    said = []
    if stopped:
        said.append(f"{listed(stopped)} of {size} did not answer: stopped, or on a node that is gone")
    if busy:
        place = answers[int(busy[0])]["at"]
        said.append(f"{listed(busy)} of {size} waited in no collective (rank {busy[0]} was at {place})")
    return " and ".join(said) or "all ranks wait in collectives; look at their devices and network"
