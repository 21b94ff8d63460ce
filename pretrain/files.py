"""Files that survive a crash whole: written beside, synced, renamed.

Holds the two moves that every durable write is made of; what is written is the caller's.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def sync(path: Path) -> None:
    """Put a file, or the names in a directory, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, pieces: Iterable[bytes], prefix: str = ".tmp-") -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the new one, whole and on disk.

    Until it is complete, its name begins with `prefix`.
    """
    temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}-{path.name}")
    with temporary.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
