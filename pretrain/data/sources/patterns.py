"""Patterns of paths: which files a pattern names, and which it leaves out.

Holds the matching, which is the same for local folders and for remote stores: a `Tree` lists them. `*`, `?` and `[ab]`
stand for parts of one name, `**` for any number of folders, also none. Free of torch.

A part of a path that exists is itself, whatever signs are in it; the first that does not exist begins the pattern.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from pretrain.errors import ConfigError, DataError

SHOWN = 3  # paths in a message
REASONS = {
    "hidden": "hidden or an editor's copy (a pattern such as **/.* asks for them)",
    "folder": "a folder where the pattern wants a file (**/* at its end reads what is in it)",
    "linked_twice": "another name of what is read already",
    "broken_link": "a link that leads nowhere",
    "no_file": "a pipe, a socket or a device",
}

log = logging.getLogger(__name__)

_MAGIC = re.compile(r"[*?[]")
_HIDDEN = re.compile(r"\..*|.*~|#.*#|.*\.sw[op]|Thumbs\.db|desktop\.ini", re.DOTALL)  # also what editors leave behind


class Entry(NamedTuple):
    """What a folder holds under one name."""

    name: str
    is_folder: bool
    is_link: bool = False
    facts: Any = None  # what the tree knows of it


class Tree(Protocol):
    """Where a pattern is looked for."""

    def entries(self, folder: str) -> list[Entry]:
        """List a folder. Raises `DataError` for one that cannot be read."""
        ...

    def exists(self, path: str) -> bool:
        """Return whether there is a file or a folder at a path."""
        ...

    def identity(self, folder: str) -> Hashable:
        """Return what is the same for two paths of one folder."""
        ...


class LeftOut:
    """The files and folders that patterns match and that are not read, by reason."""

    def __init__(self) -> None:
        """Begin with none."""
        self._paths: dict[str, set[str]] = defaultdict(set)

    def add(self, reason: str, path: str) -> None:
        """Note a path, once."""
        self._paths[reason].add(path)

    def said(self) -> str:
        """Return words about them, each reason with some of its paths; nothing if there are none."""
        words = ""
        for reason, paths in sorted(self._paths.items()):
            some = ", ".join(map(ascii, sorted(paths)[:SHOWN]))
            words += f"; left out: {REASONS[reason]} ({len(paths)}): {some}"
        return words

    def settled(self) -> dict[str, int]:
        """Return the number of paths of each reason, and log what they are."""
        if self._paths:
            log.warning("%s", self.said().removeprefix("; "))
        return {reason: len(paths) for reason, paths in self._paths.items()}


class LocalTree:
    """The folders of this machine. Links are followed."""

    def entries(self, folder: str) -> list[Entry]:
        try:
            with os.scandir(folder or ".") as found:
                return [Entry(entry.name, _is_folder(entry), entry.is_symlink()) for entry in found]
        except OSError as error:
            rule = "make it readable, or choose a pattern without it"
            raise DataError(f"{folder or '.'}: cannot be listed ({error.strerror}); {rule}") from None

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def identity(self, folder: str) -> Hashable:
        status = os.stat(folder or ".")  # noqa: PTH116 (of many files, where a Path costs more than the call)
        return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def has_signs(path: str) -> bool:
    """Return whether a path holds signs of a pattern."""
    return _MAGIC.search(path) is not None


def is_hidden(name: str, pattern: str = "*") -> bool:
    """Return whether systems and editors hide files of a name, unless the pattern that matches it asks for such."""
    return _HIDDEN.fullmatch(name) is not None and _HIDDEN.fullmatch(pattern) is None


def split(tree: Tree, folder: str, path: str, key: str) -> tuple[str, list[str]]:
    """Return the longest folder below `folder` that the path names as it is written, and the rest of its parts.

    Raises `ConfigError`, which names the setting `key`, for `**` beside other signs.
    """
    parts = path.split("/")
    while parts and (not has_signs(parts[0]) or tree.exists(posixpath.join(folder, parts[0]))):
        folder = posixpath.join(folder, parts.pop(0))
    if wrong := next((part for part in parts if "**" in part and part != "**"), None):
        rule = "** stands for folders and is alone between slashes"
        raise ConfigError(f"{key}: {path}: {rule}; write {wrong.replace('**', '**/*', 1)}")
    return folder, parts


def matches(
    tree: Tree, folder: str, parts: Sequence[str], left_out: LeftOut, *, deep: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yield path and facts of every file below `folder` that the parts of a pattern match, in no order.

    A file can come twice. Hidden files and folders, links that lead nowhere and folders that were entered by another
    name are left out; so are folders where files are wanted, unless the pattern goes `deep`.
    """
    part, *rest = parts
    if part == "**":
        for inner in _folders(tree, folder, left_out):
            yield from matches(tree, inner, rest or ["*"], left_out, deep=True)
        return
    matched = re.compile(fnmatch.translate(part)).match
    for entry in tree.entries(folder):
        if not matched(entry.name):
            continue
        path = posixpath.join(folder, entry.name)
        if is_hidden(entry.name, part):
            left_out.add("hidden", path)
        elif rest and entry.is_folder:
            yield from matches(tree, path, rest, left_out)
        elif not rest and not entry.is_folder:
            yield path, entry.facts
        elif not rest and not deep:
            left_out.add("folder", path)


def _folders(tree: Tree, folder: str, left_out: LeftOut) -> Iterator[str]:
    """Yield a folder and all below it, each once; links come last, so that a folder keeps its own name."""
    entered: set[Hashable] = set()
    folders, links = [folder], []
    while folders or links:
        inner = folders.pop() if folders else links.pop(links.index(min(links)))
        if (identity := tree.identity(inner)) in entered:
            left_out.add("linked_twice", inner)
            continue
        entered.add(identity)
        yield inner
        for entry in tree.entries(inner):
            path = posixpath.join(inner, entry.name)
            if entry.is_folder and is_hidden(entry.name):
                left_out.add("hidden", path)
            elif entry.is_folder:
                (links if entry.is_link else folders).append(path)
            elif entry.is_link and not os.path.exists(path):  # noqa: PTH110
                left_out.add("broken_link", path)


def other_form(path: str) -> str | None:
    """Return a local path that looks like one that does not exist: with the same letters in another form of Unicode."""

    def composed(name: str) -> str:
        return unicodedata.normalize("NFC", name)

    tree, folder = LocalTree(), "/" if path.startswith("/") else ""
    for part in path.strip("/").split("/"):
        inner = posixpath.join(folder, part)
        if not tree.exists(inner):
            wanted = re.compile(fnmatch.translate(composed(part)))
            with suppress(DataError):  # a file where a folder is wanted, say
                found = (entry.name for entry in tree.entries(folder) if wanted.match(composed(entry.name)))
                return next((posixpath.join(folder, name) for name in found), None)
            return None
        folder = inner
    return None
