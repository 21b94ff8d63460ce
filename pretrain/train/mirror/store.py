"""Steps in a store that fsspec opens: written, verified, read and deleted.

Holds no patience: every method raises what the store's library raises. A step counts once its `mirror.json` is there,
which comes last.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from pretrain.checkpoint.load import Listed
from pretrain.files import sealed, unsealed
from pretrain.train.mirror.base import FORMAT, SEAL_FILE, Found, Seal, check_names

_LARGEST = 1 << 28  # bytes of a list of files
_BLOCK = 1 << 24  # bytes read or written at a time
_STEP = re.compile(r"step-\d{8}")


class Changed(OSError):
    """Bytes in the store, or on the disk, that are not those which were written."""


class Store:
    """The steps of one run on a mirror. Connects when it is first used."""

    def __init__(self, url: str, run: str) -> None:
        self._url = url
        self._run = run

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(self._url)
        return files, f"{path.rstrip('/')}/{self._run}"

    @property
    def _files(self) -> Any:  # fsspec has no types for its files
        return self._opened[0]

    def _path(self, *parts: str) -> str:
        return "/".join([self._opened[1], *parts])

    def steps(self) -> Found:
        """Return which steps are there."""
        self._files.invalidate_cache()
        names: list[str] = []
        with suppress(FileNotFoundError):
            paths = self._files.ls(self._path(), detail=False)
            names = sorted({path.rstrip("/").rpartition("/")[2] for path in paths})
        found = Found([], [])
        for name in filter(_STEP.fullmatch, names):
            (found.complete if self._files.exists(self._path(name, SEAL_FILE)) else found.torn).append(name)
        return found

    def seal(self, step: str) -> Seal | None:
        """Return what is listed of a complete step, None if there is none. Raises `ValueError` for a damaged list."""
        try:
            with self._files.open(self._path(step, SEAL_FILE), "rb") as file:
                data = b"".join(_blocks(file, _LARGEST))
        except FileNotFoundError:
            return None
        return check_names(step, unsealed(data, Seal, newest=FORMAT))

    def begin(self, step: str) -> None:
        """Make a step incomplete before its files are written over."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(step, SEAL_FILE))

    def write(self, step: str, name: str, source: IO[bytes], size: int) -> Listed:
        """Write `size` bytes of an open file, read them back, and return what to list. Raises `Changed`."""
        target, digest = self._path(step, name), hashlib.sha256()
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        with self._files.open(target, "wb") as file:
            for block in _blocks(source, size):
                digest.update(block)
                file.write(block)
        there = hashlib.sha256()
        with self._files.open(target, "rb") as file:
            for block in _blocks(file, size + 1):
                there.update(block)
        if there.digest() != digest.digest():
            raise Changed(f"{name}: what was read back is not what was written")
        return {"size": size, "sha256": digest.hexdigest()}

    def complete(self, step: str, files: dict[str, Listed]) -> None:
        """Write the list of a step's files, with which it counts."""
        body = sealed({"format": FORMAT, "files": files})
        self.write(step, SEAL_FILE, io.BytesIO(body), len(body))

    def read(self, step: str, name: str, listed: Listed, target: Path) -> None:
        """Copy a file to the disk, from where an earlier attempt ended. Raises `Changed` unless it is as listed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("a+b") as file:
            if file.tell() > listed["size"]:
                file.truncate(0)
            file.seek(0)
            for block in _blocks(file, listed["size"]):
                digest.update(block)
            done = file.tell()
            if done < listed["size"]:
                with self._files.open(self._path(step, name), "rb") as source:
                    source.seek(done)
                    for block in _blocks(source, listed["size"] - done):
                        digest.update(block)
                        file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if file.tell() != listed["size"] or digest.hexdigest() != listed["sha256"]:
                file.truncate(0)
                raise Changed(f"{name}: not the bytes that {SEAL_FILE} lists")

    def remove(self, step: str) -> None:
        """Delete a step; first what makes it count."""
        self.begin(step)
        with suppress(FileNotFoundError):
            self._files.rm(self._path(step), recursive=True)


def _blocks(file: Any, size: int) -> Iterator[bytes]:
    """Yield at most `size` bytes of an open file."""
    while size > 0 and (block := file.read(min(_BLOCK, size))):
        size -= len(block)
        yield block
