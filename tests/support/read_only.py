"""Places that cannot be written, also by root: the system says so for any file that is opened for writing there."""

import errno
import os
from pathlib import Path

import pytest


def make_read_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files at or in a place be opened for reading alone, as on a file system that is mounted read-only."""
    open_ = os.open

    def opened(path, flags, *mode, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(path).is_relative_to(place):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open_(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", opened)
