"""Files that survive a crash: written whole, put on disk, hashed on the way. And paths as users type them.

Holds the moves that every durable write is made of; what is written, and what a full disk means, is the caller's.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pretrain.errors import check

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_BLOCK = 1 << 24  # bytes hashed or written at a time
_AHEAD = 64  # blocks that writing may be ahead of hashing, so that the disk is busy early


def expanded(path: str, key: str) -> str:
    """Return a path or URL, typed by the user as the setting `key`, with `~`, `~user`, `$NAME` and `${NAME}` filled in.

    What exists under the name as it is typed keeps its dollars. Raises `ConfigError` for a user or a variable that does
    not exist. Not for names out of somebody else's files: those could ask for any variable.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        rule = "this environment variable is not set, or empty; set it, or write its value out"
        check(bool(os.environ.get(name)), key, found[0], rule)
        return os.environ[name]

    if os.path.lexists(path):
        return path
    if path.startswith("~"):
        path = os.path.expanduser(path)  # noqa: PTH111 (a Path would join the slashes of a URL)
        rule = "there is no user of this name; a file whose name begins so is written ./~"
        check(not path.startswith("~"), key, path, rule)
    return _VARIABLE.sub(value, path)


def fsync_path(path: Path) -> None:
    """Put a file, or the names in a directory, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, pieces: Iterable[bytes], prefix: str = ".tmp-") -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the new one, whole and on disk.

    Until it is complete, its name begins with `prefix`.
    """
    temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}-{path.name}")
    with temporary.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def write_hashed(path: Path, head: bytes, pieces: Iterable[memoryview] = (), *, ahead: int = _AHEAD) -> str:
    """Write `head` and then `pieces` to a new file, fsync it, and return its SHA-256.

    Hashing runs beside writing. Blocks of at most 16 MiB wait for it, `ahead` of them at most. The file has its final
    name from the start: use it inside a directory that is committed as a whole.
    """
    digest = hashlib.sha256(head)
    hashing: deque[Future[None]] = deque()
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        file.write(head)
        for piece in pieces:
            for begin in range(0, len(piece), _BLOCK):
                block = piece[begin : begin + _BLOCK]
                hashing.append(hasher.submit(digest.update, block))
                file.write(block)
                if len(hashing) > ahead:
                    hashing.popleft().result()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
