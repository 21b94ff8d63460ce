"""Worker processes for preparing corpora: starting, counting, stopping; none outlives its parent or imports torch.

Holds nothing of what they do, which is in `encoding`.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

from pretrain.errors import ResourceError

REPORT_CHARS = 2**18  # characters of text between two reports of a worker


class Stopped(Exception):
    """The preparation failed elsewhere; what this worker does is given up."""


class _Signals:
    """What a worker shares with the process that started it."""

    text_chars: Synchronized[int]  # characters of text that all workers have dealt with
    stop: Event


_signals = _Signals()


@contextmanager
def worker_pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Synchronized[int]]]:
    """Open a pool of processes, with the count of characters that pass their `watched` texts.

    Raises `ResourceError` if one is killed.
    """
    context = multiprocessing.get_context("spawn")
    text_chars, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (text_chars, stop))
    try:
        yield pool, text_chars
    except BrokenProcessPool:
        raise ResourceError(
            "a worker process died, killed or out of memory; run again (what is prepared is kept), "
            "with fewer data.prepare.workers if memory was short"
        ) from None
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def watched(texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on in a worker: count their characters, and raise `Stopped` when the work has failed elsewhere."""
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


def _start(text_chars: Synchronized[int], stop: Event) -> None:
    """Prepare a new worker process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core
    _signals.text_chars, _signals.stop = text_chars, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns when the parent is gone, even if it was killed
    os._exit(1)
