"""Locks between processes: one does the work, or several do parts of it; the others wait and say for whom.

Holds the waiting only; what is locked is the caller's. Free of torch.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.2  # seconds between two attempts


@contextmanager
def exclusive(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file `path` alone while the block runs; the system releases it when the process dies.

    While another process holds it, wait, with one notice on standard error that names its host and process id.
    """
    with _held(path, purpose, fcntl.LOCK_EX, ""):
        yield


@contextmanager
def shared(path: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file `path` beside any number of other processes that share it; wait for one that does not."""
    with _held(path, purpose, fcntl.LOCK_SH, " or others beside it"):
        yield


@contextmanager
def _held(path: Path, purpose: str, kind: int, others: str) -> Iterator[None]:
    with path.open("a+") as handle:
        noticed = ""
        while not _try_lock(handle.fileno(), kind):
            handle.seek(0)
            holder = handle.read().strip()
            if holder and holder != noticed:
                print(f"waiting for {holder}, which holds {path} to {purpose}", file=sys.stderr, flush=True)
                noticed = holder
            time.sleep(POLL_S)
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on host {socket.gethostname()}{others}\n")
        handle.flush()
        yield


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
