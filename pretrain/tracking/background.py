"""A sink whose work runs in a thread, so that a slow or dead service never holds up training.

Holds the queue and its time limits, not what the sink does.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from pretrain.tracking.base import Record, Sink

logger = logging.getLogger(__name__)


class BackgroundSink:
    """Makes another sink in a thread and feeds it from a bounded queue.

    `log` returns at once: a full queue loses the record for this sink. A failure costs one warning, after which
    records are ignored. The thread is a daemon: one that hangs does not keep the process alive.
    """

    def __init__(self, name: str, make: Callable[[], Sink], *, close_timeout_s: float, capacity: int = 10_000) -> None:
        self._name = name
        self._make = make
        self._close_timeout_s = close_timeout_s
        self._queue: queue.Queue[Record | int] = queue.Queue(capacity)  # records, and at the end the exit code
        self._stopped = False  # ignore what comes: the sink failed, and the one warning is given
        self._lost = 0  # records that found the queue full
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        """Hand the record over without waiting."""
        if self._stopped:
            return
        try:
            self._queue.put_nowait(dict(record))
        except queue.Full:
            self._lost += 1

    def close(self, exit_code: int) -> None:
        """Let the thread finish what is queued, for a limited time."""
        deadline = time.monotonic() + self._close_timeout_s
        if not self._stopped:
            try:
                self._queue.put(exit_code, timeout=self._close_timeout_s)
            except queue.Full:
                self._lost += self._queue.qsize()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"did not finish within {self._close_timeout_s:g} s")
        elif self._lost:
            self._warn(f"lost {self._lost} records because it was too slow")

    def _work(self) -> None:
        try:
            sink = self._make()
            while not isinstance(item := self._queue.get(), int):
                sink.log(item)
            sink.close(item)
        except Exception as error:
            self._warn(f"stopped: {error}")

    def _warn(self, what: str) -> None:
        if not self._stopped:
            self._stopped = True
            logger.warning("%s %s; training and metrics.jsonl are not affected", self._name, what)
