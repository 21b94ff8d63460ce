"""Where input files are stored: which files paths and URLs name, and how their bytes are opened.

What the bytes mean is up to `readers` and `parquet`; patterns are matched in `patterns`, URLs in `remote`. Free of
torch.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pretrain.data.sources.patterns import LeftOut, LocalTree, has_signs, is_hidden, matches, other_form, split
from pretrain.data.sources.remote import find_remote, has_ranges, is_remote, open_remote, public_name
from pretrain.errors import ConfigError, DataError
from pretrain.settings.paths import expanded


class Input(NamedTuple):
    """One input file. A change of any value makes another corpus."""

    name: str  # path as the source names it, or URL without credentials
    size: int  # bytes, as they are stored
    version: int | str  # time of its last change in nanoseconds; of a remote file what its store knows it by


def open_raw(name: str) -> BinaryIO:
    """Open the stored bytes of a file, seekable.

    Raises `OSError` for one that cannot be opened, and `DataError` for a remote one, also while it is read.
    """
    return open_remote(name) if is_remote(name) else Path(name).open("rb")


def has_parts(name: str) -> bool:
    """Return whether a file can be read from any of its bytes on, without all before them."""
    return not is_remote(name) or has_ranges(name)


def is_file(name: str) -> bool:
    """Return whether a name is that of a local file, or a URL, of which only the store knows."""
    return is_remote(name) or Path(name).is_file()


def suffixes(name: str) -> list[str]:
    """Return the suffixes of a file's name, as of a.csv.gz; a URL has none in its query."""
    return Path(name.partition("?")[0] if is_remote(name) else name).suffixes


def other_spelling(name: str) -> str:
    """Return words about a local file whose name looks like this one, which does not exist, or nothing."""
    other = other_form(name)
    return f", but there is {other!a}, whose letters are in another form of Unicode" if other else ""


def typed_name(path: str, key: str) -> str:
    """Return the name of the file or folder that a user typed as the setting `key`: filled in, without credentials."""
    path = _without_scheme(expanded(path, key))
    return public_name(path) if is_remote(path) else path


def find_files(typed: Iterable[str], key: str) -> tuple[list[Input], LeftOut]:
    """Return the files that paths, URLs and patterns, typed as the setting `key`, name, sorted; and what is left out.

    A file that is named twice, also by links, is returned once. Raises `ConfigError` for a name without a file,
    `DataError` for a file or folder that cannot be read.
    """
    left_out = LeftOut()
    local: set[str] = set()
    remote: dict[str, Input] = {}
    urls: dict[str, str] = {}
    for path in (_without_scheme(expanded(path, key)) for path in typed):
        if not is_remote(path):
            local |= _local_names(path, key, left_out)
            continue
        if urls.setdefault(public_name(path), path) != path:
            raise ConfigError(f"{key}: {public_name(path)} is given twice, with other credentials; leave one out")
        remote |= {facts.name: Input(*facts) for facts in find_remote(path, key, left_out)}
    return sorted([*_distinct(local, left_out), *remote.values()], key=_order), left_out


def data_set_files(folder: str) -> list[Input]:
    """Return the files that `datasets` would read of a folder, sorted.

    Raises `ConfigError` for a folder whose path it would take for a pattern, or in which it would pass over a link.
    """
    if has_signs(os.path.abspath(folder)):  # noqa: PTH100
        rule = "`datasets` takes the *, ? or [ in this path for a pattern, which may match other files"
        raise ConfigError(f"{folder}: {rule}; rename the folder, or read its files with data=jsonl, parquet or text")
    names: list[str] = []
    for inner, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if linked := [name for name in folders if os.path.islink(os.path.join(inner, name))]:  # noqa: PTH114, PTH118
            rule = f"`datasets` does not follow {linked[0]!a}, a link to a folder; put the folder itself there"
            raise ConfigError(f"{inner}: {rule}, or read the files with data=jsonl, parquet or text")
        names += [os.path.join(inner, name) for name in files if not is_hidden(name)]  # noqa: PTH118
    return sorted(_distinct(names, LeftOut()), key=_order)


def file_input(path: str, name: str) -> Input:
    """Describe a local file under a name. Raises `DataError` for one that is not there."""
    status = _status(path)
    return Input(name, status.st_size, status.st_mtime_ns)


def _without_scheme(path: str) -> str:
    return path.removeprefix("file://")


def _order(entry: Input) -> list[str]:
    return entry.name.split("/")


def _local_names(path: str, key: str, left_out: LeftOut) -> set[str]:
    """Return the names of the local files that a path or pattern names, at least one."""
    tree = LocalTree()
    name = Path(path).as_posix()
    if os.path.isdir(name):  # noqa: PTH112 (many of these calls are cheaper without a Path, here and below)
        path = name = f"{name.rstrip('/')}/**/*"
    elif tree.exists(name):
        return {name}
    root = "/" if name.startswith("/") else ""
    folder, parts = split(tree, root, name.removeprefix(root), key)
    names: set[str] = set()
    if parts and not path.endswith("/") and os.path.isdir(folder or "."):  # noqa: PTH112
        names = {match for match, _ in matches(tree, folder, parts, left_out)}
    if names:
        return names
    rule = f"matches no file, seen from {Path.cwd()}; correct the path or pattern"
    if path.endswith("/"):
        rule = f"ends in /, so that it names folders; name their files: {path}**/*"
    elif other := other_spelling(name):
        rule = f"matches no file{other}; name that one"
    raise ConfigError(f"{key}: {path} {rule}{left_out.said()}")


def _distinct(names: Iterable[str], left_out: LeftOut) -> Iterator[Input]:
    """Describe local files, each once; what is no file is left out."""
    seen: dict[tuple[int, int], str] = {}
    for name in sorted(names):
        status = _status(name)
        first = seen.setdefault((status.st_dev, status.st_ino), name)
        # Some file systems give several files one number: ask for the path, too.
        if first != name and (status.st_nlink > 1 or os.path.realpath(first) == os.path.realpath(name)):
            left_out.add("linked_twice", name)
        elif stat.S_ISREG(status.st_mode):
            yield Input(name, status.st_size, status.st_mtime_ns)
        else:
            left_out.add("no_file", name)


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError as error:
        where = f", a link to {os.readlink(path)}" if os.path.islink(path) else ""  # noqa: PTH114, PTH115
        fix = "restore the file or leave it out"
        raise DataError(f"{path}{where}: cannot be read ({error.strerror}); {fix}") from None
