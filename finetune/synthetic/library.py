"""The files of the running Python's standard library, parsed, and an order at random that is the same everywhere.

Holds the reading; what is asked of the files is in `packages` and `signatures`.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pretrain.data.sources.base import StdlibSource

Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceFile(NamedTuple):
    """A file of the library."""

    name: str  # its path in the folder of the library
    text: str
    tree: ast.Module


def source_files() -> Iterator[SourceFile]:
    """Yield the files of which `data=stdlib` makes its corpus, in order. Raises `ConfigError` if there are none."""
    root = Path(sysconfig.get_path("stdlib"))
    for entry in StdlibSource().inputs():
        with tokenize.open(root / entry.name) as file:  # in the encoding that the file declares
            text = file.read()
        yield SourceFile(entry.name, text, ast.parse(text))


def drawn(*names: str) -> bytes:
    """Return the key by which things with these names are sorted into an order at random."""
    return hashlib.sha256("\0".join(names).encode()).digest()
