"""Documents out of byte streams: cutting, decoding and mending.

Holds what is the same for every source; which files a source reads is in `base`, opening them in `readers`. Free of
torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, NamedTuple

from pretrain.data.sources.bad_records import BadRecords, OnInvalid
from pretrain.data.sources.compression import BLOCK
from pretrain.data.sources.content import MARK
from pretrain.errors import DataError

DOCUMENT_LIMIT = 256 * 2**20  # bytes; a longer document is refused, so that memory stays bounded
PART_BYTES = 4 * 2**20  # of a part of a long text
# Where a text is cut, the best place first: before a paragraph, a line, a word.
_BREAKS = re.compile(rb"\n[ \t\r]*\n\s*"), re.compile(rb"\n"), re.compile(rb"[ \t]")
_INSIDE = bytes(range(0x80, 0xC0))  # bytes within a character of UTF-8, none of which it begins with
_MARK = re.compile("^\ufeff+", re.MULTILINE)  # a byte order mark: where files begin, also those that were joined


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


def decode(raw: Raw, bad: BadRecords) -> str | None:
    """Return the text of a document, mended if the policy says so, or None for one that is left out.

    Byte order marks at the beginning of lines are no part of it.
    """
    try:
        text = raw.data.decode()
    except UnicodeDecodeError as error:
        bad.report("invalid_utf8", raw.place(error.start), f"not valid UTF-8 ({error.reason})")
        if bad.policy is OnInvalid.skip:
            return None
        text = raw.data.decode(errors="replace")
    if "\0" in text:
        bad.report("nul_bytes", raw.place(raw.data.index(0)), "NUL byte in text")
        if bad.policy is OnInvalid.skip:
            return None
        text = text.replace("\0", "\ufffd")
    if "\ufeff" in text:
        text = _MARK.sub("", text)
    if not text or text.isspace():
        bad.counts["empty"] += 1
        return None
    return text


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

    The run at the start of the stream belongs to start = 0. So every run belongs to one range, and a range is read
    without looking back.
    """
    owned = start == 0
    held: list[bytes] = []
    begin = length = 0
    for position, line in chain(_lines_from(stream, file, start), [(0, b"\n")]):  # the end is like a blank line
        if line.isspace() or line.removeprefix(MARK).isspace():
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


def parts(stream: BinaryIO, file: str, start: int, stop: int | None) -> Iterator[Raw]:
    """Yield the parts of a long text that begin in the bytes [start, stop), or a little later; a short one is whole.

    Part n begins where a paragraph, a line or a word begins, soon after byte n * PART_BYTES. At the end of the stream
    BLOCK bytes or less are no part of their own.
    """
    number = -(-start // PART_BYTES)
    if number:
        stream.seek(number * PART_BYTES)
    data = stream.read(BLOCK + 1)
    ended = number > 0 and len(data) <= BLOCK
    begin = boundary(data, 0, BLOCK) if number else 0
    position, data = number * PART_BYTES + begin, data[begin:]
    while not ended and (stop is None or number * PART_BYTES < stop):
        number += 1
        nominal = number * PART_BYTES - position
        data += stream.read(nominal + BLOCK + 1 - len(data))
        ended = len(data) <= nominal + BLOCK
        cut = len(data) if ended else boundary(data, nominal, nominal + BLOCK)
        yield Raw(data[:cut], file, position)
        position, data = position + cut, data[cut:]


def boundary(text: bytes, low: int, high: int) -> int:
    """Return where in [low, high] a text in UTF-8 is best cut: before a paragraph, else a line, a word, a character."""
    for pattern in _BREAKS:
        if found := pattern.search(text, low, high):
            return found.end()
    after = text[low : low + 4]
    return low + len(after) - len(after.lstrip(_INSIDE))


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
