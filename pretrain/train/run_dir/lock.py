"""The lock of a run directory: one process (rank 0 of a run) holds it at a time.

Holds taking it and asking who has it. The system releases it when its process dies, however it does. Free of torch.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from pretrain.errors import ConfigError

LOCK_FILE = "lock"


def open_lock(run: Path) -> IO[str]:
    """Open the file of the lock of a directory, made if it is not there. Raises `OSError` as the system does."""
    return (run / LOCK_FILE).open("a+", encoding="utf-8", errors="replace")


def take(lock: IO[str], run: Path) -> None:
    """Take the open lock of a directory for this process. Raises `ConfigError` that names who holds it."""
    if not _locked(lock):
        lock.seek(0)
        raise ConfigError(
            f"run.name={run.name}: {run} is in use by {lock.read().strip()}; wait for it, stop it, "
            "or choose another run.name"
        )


def sign(lock: IO[str]) -> None:
    """Write into a lock that is taken who holds it, for others to read."""
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on host {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    lock.flush()


def _locked(file: IO[str]) -> bool:
    """Lock a file for this process alone, unless another process holds it for longer than `is_locked` does."""
    for pause_s in (0.1, 0.0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(pause_s)
    return False


def is_locked(run: Path) -> bool:
    """Return whether a process holds a run directory, on this host or, where the file system passes it on, another."""
    if not (run / LOCK_FILE).is_file():
        return False
    with (run / LOCK_FILE).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
