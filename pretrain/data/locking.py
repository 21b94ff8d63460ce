"""A lock between processes: one does the work, the others wait for it and say whom they wait for.

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
    """Hold the lock file `path` while the block runs; the system releases it when the process dies.

    While another process holds it, wait, with one notice on standard error that names its host and process id.
    """
    with path.open("a+") as handle:
        noticed = ""
        while not _try_lock(handle.fileno()):
            handle.seek(0)
            holder = handle.read().strip()
            if holder and holder != noticed:
                print(f"waiting for {holder}, which holds {path} to {purpose}", file=sys.stderr, flush=True)
                noticed = holder
            time.sleep(POLL_S)
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
        handle.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
