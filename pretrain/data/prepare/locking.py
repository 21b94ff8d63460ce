"""Locks between processes: one does the work, or several do parts of it; the others wait and say for whom.

Holds the waiting only; what is locked is up to the caller. Free of torch.
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
def lock(path: Path, purpose: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, alone or beside other processes that share it.

    While another process holds it, wait, with one notice on standard error that names its host and process id. The
    system releases the lock when the process dies.
    """
    with path.open("a+", encoding="utf-8") as handle:
        noticed = ""
        while not _try_lock(handle.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            handle.seek(0)
            holder = handle.read().strip()
            if holder and holder != noticed:
                print(f"waiting for {holder}, which holds {path} to {purpose}", file=sys.stderr, flush=True)
                noticed = holder
            time.sleep(POLL_S)
        handle.seek(0)
        handle.truncate()
        others = " or others beside it" if shared else ""
        handle.write(f"pid {os.getpid()} on host {socket.gethostname()}{others}\n")
        handle.flush()
        yield


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
