"""Files that survive a crash, written whole and hashed on the way; and JSON that is read with suspicion.

Holds the moves that every durable write is made of, and the checks that every JSON file of ours passes when it is read.
What is written, and which error a full disk or a damaged file is, is the caller's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import types
import uuid
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

_BLOCK = 1 << 24  # bytes hashed or written at a time
_AHEAD = 64  # blocks that writing may be ahead of hashing, so that the disk is busy early
_LARGEST = 1 << 28  # bytes of a JSON file: the manifest of a step of thousands of ranks has a tenth
_SEAL = "sha256"  # entry of a JSON object: the hash of all others


class _Numbered(TypedDict):
    format: int


class OtherFormat(ValueError):
    """A file whose format number is above the one that this version knows."""


def fsync_path(path: Path) -> None:
    """Put a file, or the names in a directory, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, pieces: Iterable[bytes], prefix: str = ".tmp-") -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the new one, whole and on disk.

    Until it is complete, its name begins with `prefix`. Where it cannot be written, as on a full disk, nothing is left.
    """
    temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
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


def remove(path: Path) -> None:
    """Delete a file, a directory with all that is in it, or a link, but nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def check_place(directory: Path, *, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Raise `OSError` if something else than a file or folder is where one will be written.

    A link is something else: what is written there would be written elsewhere.
    """
    for names, is_one, what in ((files, stat.S_ISREG, "regular file"), (folders, stat.S_ISDIR, "directory")):
        for path in (directory / name for name in names):
            if os.path.lexists(path) and not is_one(path.lstat().st_mode):
                there = f"a link to {path.readlink()}" if path.is_symlink() else f"no {what}"
                raise OSError(f"{path} is {there}; what is written there must be a {what} of its own, move it away")


def check_writable(directory: Path, *, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Raise `OSError` unless files can be made in a directory and its folders, and its files can be written.

    Files and folders that are not there are left out. It is tried: permissions say nothing to root, and nothing of a
    file system that is mounted read-only.
    """
    for place in (directory, *(directory / name for name in folders)):
        if place.is_dir():
            _open_and_close(place / f".tmp-{uuid.uuid4().hex}", os.O_CREAT | os.O_EXCL, f"{place}: no file can be made")
    for path in (directory / name for name in files):
        if path.exists():
            _open_and_close(path, os.O_APPEND, f"{path}: cannot be written")


def _open_and_close(path: Path, flags: int, problem: str) -> None:
    """Open and close a file for writing; delete it if it was made. Raises `OSError` that begins with `problem`."""
    try:
        os.close(os.open(path, os.O_WRONLY | flags))
        if flags & os.O_CREAT:
            path.unlink()
    except OSError as error:
        raise OSError(f"{problem} ({error.strerror})") from None


def sealed(content: dict[str, Any], *, indent: int | None = 1) -> bytes:
    """Return an object as JSON in which `read_json` sees any later change."""
    content = json.loads(json.dumps(content))  # keys are strings, and tuples are lists, as they will be read
    return json.dumps({**content, _SEAL: _seal(content)}, indent=indent).encode() + b"\n"


def read_json(path: Path, kind: Any = dict[str, Any], *, newest: int | None = None) -> Any:
    """Return the object in a JSON file as a `kind`: a dataclass, a TypedDict or a dict.

    A sealed object is checked; `newest` is the largest `format` that the caller knows. Raises `OSError` for a file that
    cannot be read, `OtherFormat` for a later format and `ValueError` for anything else than such an object.
    """
    return unsealed(_bytes_of(path), kind, newest=newest)


def unsealed(data: bytes, kind: Any = dict[str, Any], *, newest: int | None = None) -> Any:
    """Return the object in the bytes of a JSON file as `read_json` does. Raises `OtherFormat` and `ValueError`."""
    content = parsed(data)
    if newest is not None:
        found = typed_as(_Numbered, content)["format"]
        if found > newest:
            raise OtherFormat(f"format {found}; this version of Headwater reads format {newest}, use a later version")
        if found < 1:
            raise ValueError(f"format {found}, which there never was")
    seal = content.pop(_SEAL, None)
    if seal is not None and seal != _seal(content):
        raise ValueError(f"not as it was written: its {_SEAL!r} differs; restore it, or drop that entry to accept it")
    return typed_as(kind, content)


def parsed(data: bytes) -> dict[str, Any]:
    """Return the JSON object in UTF-8 bytes. Raises `ValueError` for anything else, however deep or odd."""
    try:
        content = json.loads(data.decode(), object_pairs_hook=_distinct)
        if b"\\u" in data:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair can be in no path
    except UnicodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def typed_as(kind: Any, value: Any, place: str = "") -> Any:
    """Return plain JSON as a `kind`, such as a dataclass or `dict[str, list[int]]`.

    Raises `ValueError` for a value of another type, by its place. An int will do for a float, a tuple is a list. Keys
    that a TypedDict does not name are left alone, those that a dataclass does not have are refused.
    """
    base, parts = get_origin(kind) or kind, get_args(kind)
    if kind in (Any, object) or (kind is float and type(value) is int) or (not parts and type(value) is base):
        return value
    if base in (Union, types.UnionType):
        [other] = [part for part in parts if part is not type(None)]  # optional values alone
        return None if value is None else typed_as(other, value, place)
    if base is list and type(value) is list:
        return [typed_as(parts[0], entry, f"{place}[{number}]") for number, entry in enumerate(value)]
    if base is tuple and type(value) is list and len(value) == len(parts):
        return [typed_as(part, entry, place) for part, entry in zip(parts, value, strict=True)]
    if base is dict and type(value) is dict:
        return {key: typed_as(parts[1], entry, f"{place}.{key}") for key, entry in value.items()}
    if type(value) is dict and (is_typeddict(base) or is_dataclass(base)):
        return _typed_fields(base, value, place)
    name = getattr(base, "__name__", str(base))
    raise ValueError(f"{place.lstrip('.') or 'it'} is {_shown(value)}, no {'object' if base is dict else name}")


def _typed_fields(kind: Any, value: dict[str, Any], place: str) -> Any:
    hints = _hints(kind)
    if is_dataclass(kind):
        needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(f"{place.lstrip('.') or 'it'} has {unknown[0]!r}, which this version does not know")
    else:
        needed = kind.__required_keys__
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{place.lstrip('.') or 'it'} lacks {missing[0]!r}")
    found = {key: typed_as(hints[key], value[key], f"{place}.{key}") for key in hints if key in value}
    make: Any = kind
    return make(**found) if is_dataclass(kind) else value | found


_hints = cache(get_type_hints)


def _bytes_of(path: Path) -> bytes:
    """Return the content of a regular file of bounded size. Raises `OSError` for anything else: a pipe would block."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > _LARGEST:
            raise OSError(f"{status.st_size:,} bytes, of which no more than {_LARGEST:,} are read")
        return file.read()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"names {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return content


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
