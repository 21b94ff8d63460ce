"""A sink whose work runs in a thread, so that a slow or dead service never holds up training.

Holds the queue and its time limits, not what the sink does.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.tracking.base import Record, Sample, Sink

logger = logging.getLogger(__name__)

_Work = Callable[[Sink], None]


class _Worker(threading.Thread):
    """The thread of a background sink; its class marks it among all threads of the process."""


def sinks_still_working() -> bool:
    """Whether a sink of this process, after all of them were closed, did not finish in time and still runs."""
    return any(isinstance(thread, _Worker) for thread in threading.enumerate())


class BackgroundSink(Sink):
    """Makes another sink in a thread and feeds it from a bounded queue.

    `log`, `sampled` and `saved` return at once: if the queue is full, this sink loses the record. After a failure,
    which is warned of once, records are ignored. The thread is a daemon, but the exit hooks of the sink's library may
    still wait for it: see `sinks_still_working`.
    """

    def __init__(
        self,
        name: str,  # in warnings
        make: Callable[[], Sink],
        *,
        close_timeout_s: float,  # seconds that `close` waits for the sink
        remedy: str = "metrics.jsonl has everything",  # said with every warning
        capacity: int = 10_000,  # records
    ) -> None:
        self._name = name
        self._make = make
        self._close_timeout_s = close_timeout_s
        self._remedy = remedy
        self._queue: queue.Queue[_Work | None] = queue.Queue(capacity)  # None: the end
        self._exit_code = 0  # known when the None is in the queue
        self._stopped = False  # the sink failed and the warning was given: ignore further records
        self._lost = 0  # records dropped because the queue was full
        self._thread = _Worker(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        """Queue the record without waiting."""
        taken = dict(record)
        self._put(lambda sink: sink.log(taken))

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Queue the samples without waiting."""
        self._put(lambda sink: sink.sampled(step, samples))

    def saved(self, step: int, path: Path, best: bool) -> None:
        """Queue the checkpoint without waiting."""
        self._put(lambda sink: sink.saved(step, path, best))

    def close(self, exit_code: int) -> None:
        """Let the thread finish what is queued, for a limited time."""
        deadline = time.monotonic() + self._close_timeout_s
        self._exit_code = exit_code
        if not self._stopped:
            try:
                self._queue.put(None, timeout=self._close_timeout_s)
            except queue.Full:
                self._lost += self._queue.qsize()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"did not finish within {self._close_timeout_s:g} s")
        elif self._lost:
            self._warn(f"lost {self._lost} records because it was too slow")

    def _put(self, work: _Work) -> None:
        if self._stopped:
            return
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._lost += 1

    def _work(self) -> None:
        try:
            sink = self._make()
            try:
                while work := self._queue.get():
                    work(sink)
            finally:  # a sink that failed must be closed, too
                sink.close(self._exit_code)
        except Exception as error:
            self._warn(f"stopped: {str(error).partition(chr(10))[0] or type(error).__name__}")

    def _warn(self, what: str) -> None:
        if not self._stopped:
            self._stopped = True
            logger.warning("%s %s; training is not affected, %s", self._name, what, self._remedy)
