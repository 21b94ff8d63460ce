"""Worker processes for preparing corpora: starting, progress, stopping; none outlives its parent or imports torch.

Holds nothing of what they do, which is in `encode`. Progress is a bar on a terminal, a line now and then elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from types import ModuleType
from typing import Any

from pretrain.commands import signals_held
from pretrain.data.sources.remote import addresses, remember
from pretrain.errors import Preempted, ResourceError
from pretrain.tracking.console import takes_bar

POLL_S = 0.2  # seconds between two looks at the workers
FIRST_LINE_S, LINE_EVERY_S = 1.0, 10.0  # seconds until a line of progress, and to the next, where there is no terminal
REPORT_CHARS = 2**18  # characters of text between two reports of a worker

Call = tuple[Any, ...]  # a function and its arguments


class Stopped(Exception):
    """Another part of the preparation failed; this worker drops its work."""


class Workers:
    """A pool of worker processes."""

    def __init__(self, pool: ProcessPoolExecutor, text_chars: Synchronized[int]) -> None:
        self._pool = pool
        self._text_chars = text_chars  # characters that passed the `watched` texts of all workers

    def call(self, *call: Any) -> Any:
        """Return the result of one call."""
        return self._submit(call).result()

    def run(self, title: str, calls: Iterable[Call], *, finished: int = 0) -> list[Any]:
        """Return the results of calls in their order and show the progress, after units `finished` before.

        Raises the error of the first call that fails.
        """
        futures = [self._submit(call) for call in calls]
        pending = set(futures)
        total = finished + len(futures)
        with _progress(title, total) as show:
            while pending:
                done, pending = wait(pending, POLL_S, FIRST_COMPLETED)
                for future in done:
                    future.result()
                show(total - len(pending), self._text_chars.value)
        return [future.result() for future in futures]

    def _submit(self, call: Call) -> Future[Any]:
        # This may start a worker. What asks to stop is for this process to handle, not for that one.
        with signals_held(), _without_program():
            return self._pool.submit(*call)


@contextmanager
def _without_program() -> Iterator[None]:
    """Have processes that start in the block not import the program of this one, which `spawn` would have them do.

    A script that trains as it is imported would train there as well, and it imports torch.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


@contextmanager
def worker_pool(num_workers: int) -> Iterator[Workers]:
    """Open a pool of processes. Raises `ResourceError` if one of them is killed."""
    context = multiprocessing.get_context("spawn")
    text_chars, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(num_workers, context, _start, (text_chars, stop, addresses()))
    try:
        yield Workers(pool, text_chars)
    except BrokenProcessPool:
        raise ResourceError(
            "a worker process died, killed or out of memory; run again (what is prepared is kept), "
            "with fewer data.prepare.workers if memory was short"
        ) from None
    except (Preempted, KeyboardInterrupt):
        for worker in multiprocessing.active_children():  # which may be at its unit for minutes
            worker.kill()
        raise
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows finished units of `total` and the characters of text that were encoded."""
    start = time.monotonic()
    next_line = start + FIRST_LINE_S

    def rate(chars: int) -> str:
        return f"{chars / 1e6:.1f} MB of text, {chars / 1e6 / max(time.monotonic() - start, 1e-3):.2f} MB/s"

    def line(finished: int, chars: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line or finished == total:
            print(f"{title}: {finished}/{total} units, {rate(chars)}", file=sys.stderr, flush=True)
            next_line = time.monotonic() + LINE_EVERY_S

    if not takes_bar(sys.stderr):
        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.fields[text]}")
    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), text
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), expand=True) as bar:
        task = bar.add_task(title, total=total, text="")
        yield lambda finished, chars: bar.update(task, completed=finished, text=rate(chars))


class _Signals:
    """What a worker shares with the process that started it."""

    text_chars: Synchronized[int]
    stop: Event


_signals = _Signals()


def watched(texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on in a worker: count their characters, and raise `Stopped` when another worker has failed."""
    pending = 0
    for text in texts:
        yield text
        pending += len(text)
        if pending >= REPORT_CHARS:
            if _signals.stop.is_set():
                raise Stopped
            with _signals.text_chars.get_lock():
                _signals.text_chars.value += pending
            pending = 0
    with _signals.text_chars.get_lock():
        _signals.text_chars.value += pending


def _start(text_chars: Synchronized[int], stop: Event, known: dict[str, str]) -> None:
    """Prepare a new worker process, which opens the remote files that this one knows."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # how the pool ends workers
    remember(known)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core
    _signals.text_chars, _signals.stop = text_chars, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns when the parent is gone, even if it was killed
    os._exit(1)
