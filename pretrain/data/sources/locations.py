"""Where the bytes of input files are stored, and how they are opened.

What the bytes mean is up to `readers` and `parquet`. Free of torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO


def open_raw(name: str) -> BinaryIO:
    """Open the stored bytes of a file, seekable. Raises `OSError` for one that cannot be opened."""
    return Path(name).open("rb")
