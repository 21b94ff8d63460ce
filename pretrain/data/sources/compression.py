"""Compressed files, which are known by their first bytes and not by their names, and read as one plain stream.

Kinds that are not read are named in `content`. Free of torch.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

SUFFIXES = (".gz", ".xz", ".bz2", ".zst")  # left out where a name says what a file holds, as in a.csv.gz
SIGNATURE_BYTES = 16  # at the start of a file, enough to know whether it is compressed
ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)  # of damaged files; those of bz2 and Arrow are OSErrors
BLOCK = 2**16  # bytes that are read at a time

Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


class _Streams(io.RawIOBase):
    """What is in one compressed stream after another, as `cat a.xz b.xz` joins them, with zero bytes as padding.

    The files of `bz2` and `lzma` end without a word where a later stream is damaged.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Decompressor]) -> None:
        self._raw = raw
        self._new = new
        self._current = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer):
            compressed = b""
            if self._current.eof:
                if not (compressed := self._after_stream()):
                    break
                self._current = self._new()
            elif self._current.needs_input and not (compressed := self._raw.read(BLOCK)):
                raise EOFError("it ends in the middle of a compressed stream")
            data = self._current.decompress(compressed, len(buffer) - filled)
            buffer[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def _after_stream(self) -> bytes:
        """Return the start of what follows a stream and its padding; nothing at the end of the file."""
        rest = self._current.unused_data.lstrip(b"\0")
        while not rest and (chunk := self._raw.read(BLOCK)):
            rest = chunk.lstrip(b"\0")
        return rest


_OPENERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Any]], ...] = (
    (re.compile(rb"\x1f\x8b\x08"), lambda raw: gzip.GzipFile(fileobj=raw)),
    (re.compile(rb"\xfd7zXZ\0"), lambda raw: _Streams(raw, lzma.LZMADecompressor)),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), lambda raw: _Streams(raw, bz2.BZ2Decompressor)),
    # A frame, or one that readers skip, with which seekable files of zstd begin.
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), lambda raw: pa.CompressedInputStream(raw, "zstd")),
)


def is_compressed(head: bytes) -> bool:
    """Return whether the first SIGNATURE_BYTES of a file are those of a kind of compression that is read."""
    return any(signature.match(head) for signature, _ in _OPENERS)


def decompressed(raw: BinaryIO) -> io.BufferedReader:
    """Return the content of a file, its bytes as they are if it is not compressed; BLOCK of them can be peeked at."""
    stream = io.BufferedReader(raw, BLOCK)  # pyright: ignore[reportArgumentType]
    head = stream.peek(SIGNATURE_BYTES)
    opener = next((opener for signature, opener in _OPENERS if signature.match(head)), None)
    return io.BufferedReader(opener(stream), BLOCK) if opener else stream
