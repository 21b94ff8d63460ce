"""Documents out of byte streams: opening, cutting, decoding, and counting what is wrong with them.

Holds what is the same for every source; which files a source reads is in `sources`. Free of torch.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from pretrain.errors import DataError

COMPRESSED = (".gz", ".xz", ".bz2", ".zst")  # suffixes that `open_bytes` undoes
DOCUMENT_LIMIT = 256 * 2**20  # bytes; a longer document is refused, so that memory stays bounded


class OnInvalid(Enum):
    """What happens to text that is not valid: invalid UTF-8, NUL bytes, bad records."""

    replace = "replace"  # mend it with U+FFFD; records that cannot be mended are left out
    skip = "skip"  # leave the document out
    fail = "fail"  # stop with an error that names file and offset


class Raw(NamedTuple):
    """The bytes of one document and where they come from."""

    data: bytes
    file: str
    start: int  # bytes before it in the file (uncompressed), or its row
    unit: str = "byte"  # what `start` counts: "byte" or "row"

    def place(self, offset: int = 0) -> str:
        """Name the file and the position of a byte of the document."""
        if self.unit == "byte":
            return f"{self.file}: byte {self.start + offset}"
        return f"{self.file}: {self.unit} {self.start}, byte {offset} of the text"


class Problems:
    """Counts what was left out or mended, by reason; under the policy `fail` the first one is an error."""

    def __init__(self, policy: OnInvalid) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()  # reason -> documents, lines or files

    def leave_out(self, reason: str) -> None:
        """Count something that holds no text, which no policy minds."""
        self.counts[reason] += 1

    def report(self, reason: str, place: str, rule: str) -> None:
        """Count something invalid. Raises `DataError` under the policy `fail`."""
        if self.policy is OnInvalid.fail:
            raise DataError(
                f"{place}: {rule}; mend the file, or choose data.prepare.on_invalid=replace (mends what can be mended) "
                "or =skip (leaves the document out)"
            )
        self.counts[reason] += 1


def decode(raw: Raw, problems: Problems) -> str | None:
    """Return the text of a document, mended if the policy says so, or None for one that is left out."""
    try:
        text = raw.data.decode()
    except UnicodeDecodeError as error:
        problems.report("invalid_utf8", raw.place(error.start), f"not valid UTF-8 ({error.reason})")
        if problems.policy is OnInvalid.skip:
            return None
        text = raw.data.decode(errors="replace")
    if "\0" in text:
        problems.report("nul_bytes", raw.place(raw.data.index(0)), "NUL byte in text")
        if problems.policy is OnInvalid.skip:
            return None
        text = text.replace("\0", "\ufffd")
    if not text or text.isspace():
        problems.leave_out("empty")
        return None
    return text


@contextmanager
def open_bytes(file: str) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed by its suffix. Errors of reading become a `DataError` that names it."""
    try:
        with _open(file) as stream:
            yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); restore the file or leave it out of the source") from error


def _open(file: str) -> BinaryIO:
    suffix = Path(file).suffix
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(file))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(file))
    if suffix == ".zst":
        # Concatenated zstd frames are read as one stream, like the other kinds.
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, pa.input_stream(file, compression="zstd"))))
    return Path(file).open("rb")


def whole(stream: BinaryIO, file: str) -> Iterator[Raw]:
    """Yield the whole stream as one document."""
    data = stream.read(DOCUMENT_LIMIT + 1)
    _check_length(len(data), file, 0)
    yield Raw(data, file, 0)


def lines(stream: BinaryIO, file: str, start: int, stop: int | None) -> Iterator[Raw]:
    """Yield the lines, without their ends, that begin in the bytes [start, stop); None = the end of the stream."""
    for position, line in _lines_from(stream, file, start):
        if stop is not None and position >= stop:
            return
        yield Raw(line.rstrip(b"\r\n"), file, position)


def paragraphs(stream: BinaryIO, file: str, start: int, stop: int | None) -> Iterator[Raw]:
    """Yield the runs of non-blank lines whose preceding blank line begins in the bytes [start, stop).

    The run at the beginning of the stream belongs to start = 0. So every run belongs to one range, and a range is read
    without looking back.
    """
    owned = start == 0
    held: list[bytes] = []
    begin = length = 0
    for position, line in _lines_from(stream, file, start):
        if line.isspace():
            if held:
                yield Raw(b"".join(held).rstrip(b"\r\n"), file, begin)
                held, length = [], 0
            if stop is not None and position >= stop:
                return
            owned = True
        elif owned:
            if not held:
                begin = position
            held.append(line)
            length += len(line)
            _check_length(length, file, begin)
    if held:
        yield Raw(b"".join(held).rstrip(b"\r\n"), file, begin)


def _lines_from(stream: BinaryIO, file: str, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, line with its end) for the lines that begin at `start` or later."""
    position = start
    if start > 0:
        stream.seek(start - 1)
        position += len(stream.readline()) - 1  # the rest of a line that began earlier, or the end of one
    while line := stream.readline(DOCUMENT_LIMIT + 1):
        _check_length(len(line), file, position)
        yield position, line
        position += len(line)


def _check_length(length: int, file: str, start: int) -> None:
    if length > DOCUMENT_LIMIT:
        raise DataError(
            f"{file}: byte {start}: a document of more than {DOCUMENT_LIMIT} bytes; "
            "cut the text into shorter documents (data.sources.*.documents=line or blank_line), or split the file"
        )
