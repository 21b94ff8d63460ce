"""What a file is, told from its first bytes: text in UTF-8, or something else, which is named with what to do about it.

Looks at the content alone; names and suffixes promise nothing. Free of torch.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from pretrain.data.sources.compression import BLOCK, is_compressed
from pretrain.errors import DataError

MARK = codecs.BOM_UTF8  # a byte order mark, which is no text
# A few NUL or invalid bytes are bad documents, and the policy is for them. So many in a block, and it is no UTF-8:
FEWEST_WRONG = 3
LEAST_WRONG = 0.001  # of all bytes
START = 2**10  # bytes of a block in which control characters are counted
MOST_CONTROLS = 0.1  # of these bytes; text has fewer
LEAST_PLAIN = 0.01  # of all characters; text in any script has as many spaces, line ends and signs of ASCII

Check = Callable[[bytes], str | None]  # the first block of a file -> what is wrong with it and what to do, if anything


class ForeignFile(DataError):
    """A file that is not what its source reads; `data.prepare.on_invalid=skip` leaves it out."""


class _Kind(NamedTuple):
    signature: re.Pattern[bytes]  # the first bytes
    what: str
    fix: str


def _kind(signature: bytes, what: str, fix: str) -> _Kind:
    return _Kind(re.compile(signature, re.DOTALL), what, fix)


_UNPACK = "unpack it and name the files that are in it"
_CONVERT = "decompress it, or compress it with gzip, xz, bzip2 or zstd"
_SAVE = "save its table as Parquet"
_KINDS = (
    _kind(rb"PK(\x03\x04|\x05\x06|\x07\x08)", "a zip archive, as documents of Word and Excel are", _UNPACK),
    _kind(rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _kind(rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    _kind(rb".{257}ustar[ \0]", "a tar archive", _UNPACK),
    _kind(rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "compressed with lz4", _CONVERT),
    _kind(rb"\xff\x06\0\0sNaPpY", "compressed with snappy", _CONVERT),
    _kind(rb"\x1f[\x9d\xa0]", "compressed with compress", _CONVERT),
    _kind(rb"LZIP\x01|\x89LZO\0", "compressed with lzip or lzop", _CONVERT),
    _kind(rb"\x5d\0\0..(\xff{8}|.{5}\0{3})", "compressed with lzma", _CONVERT),
    _kind(rb"PAR[1E][^ -~\s]", "a Parquet file", "choose data=parquet for it, or, for fine-tuning, name it .parquet"),
    _kind(rb"ARROW1\0\0|\xff{4}..\0\0", "an Arrow file", _SAVE),
    _kind(rb"Obj\x01", "an Avro file", _SAVE),
    _kind(rb"%PDF-\d", "a PDF document", "extract its text, for example with pdftotext"),
)
_MARKS = (  # the longer ones first: those of UTF-32 begin like those of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_SPREAD_OBJECT = re.compile(rb'\{(.*[{\[,:])?[ \t\r]*\n\s*["}\]]')  # continues on the next line
_ISO_2022 = re.compile(rb"\x1b\$[@A-D()]")  # shifts to an alphabet of East Asia, which then looks like ASCII
_TEXT_BYTES = bytes(sorted({*range(0x20, 0x7F), *range(0x80, 0x100), *b"\x01\b\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f"}))


def unlike_text(block: bytes) -> str | None:
    """Say why a file that begins with `block` is not text in UTF-8, and what to do, or return None for one that is."""
    if is_compressed(block):
        return "compressed data, expected text; decompress it"  # within compressed data, if it is a file
    for kind in _KINDS:
        if kind.signature.match(block):
            return f"{kind.what}; {kind.fix}"
    if encoding := next((name for mark, name in _MARKS if block.startswith(mark)), None):
        return _in(encoding)
    if shift := _ISO_2022.search(block):
        return f"probably {_in('ISO-2022-KR' if shift[0].endswith(b')') else 'ISO-2022-JP')}"
    many = max(FEWEST_WRONG, LEAST_WRONG * len(block))
    controls = len(block[:START].translate(None, _TEXT_BYTES))
    binary = controls > MOST_CONTROLS * len(block[:START]) or block.count(0) >= many
    if not binary and _is_utf8(block, many):
        return None
    shares = {encoding: _plain_share(encoding, block) for encoding in _WIDE}
    if shares[encoding := max(shares, key=shares.__getitem__)] > LEAST_PLAIN:
        return f"probably {_in(encoding)}"
    if binary:
        return "binary data, expected text; name another file"
    return (
        "probably not in UTF-8, perhaps in Latin-1, a code page of Windows, GBK or Shift-JIS, or no text; convert it, "
        "for example with iconv -f CP1252 -t UTF-8 (file -i guesses the encoding)"
    )


def unlike_lines(block: bytes) -> str | None:
    """Say what a file is that has the line ends of old Macs, and so would be one line."""
    if b"\n" not in block and b"\r" in block[:-1]:
        return r"its lines end in carriage returns alone; convert them, for example with tr '\r' '\n'"
    return None


def unlike_json_lines(block: bytes) -> str | None:
    """Say what a JSON file is that does not have one object a line."""
    start = block.removeprefix(MARK).lstrip()
    first, end, _ = start.partition(b"\n")
    if first.startswith(b"["):
        try:
            listed = json.loads(first)
        except (ValueError, RecursionError):
            listed = [{}] if end or len(block) == BLOCK else []  # continues on other lines
        if any(isinstance(value, dict) for value in listed):
            return "a JSON list, expected one object a line; convert it, for example with jq -c '.[]'"
    if _SPREAD_OBJECT.match(start):
        return "JSON objects of several lines each, expected one a line; convert it, for example with jq -c ."
    return unlike_lines(block)


def unlike_parquet(block: bytes) -> str | None:
    """Say what a file is that does not begin as Parquet does."""
    if not block or block.startswith((b"PAR1", b"PARE")):
        return None
    if is_compressed(block):
        return "compressed as a whole; decompress it"
    return unlike_text(block) or "text; choose data=jsonl or data=text for it, or, for fine-tuning, name it .jsonl"


def check_content(file: str, block: bytes, *checks: Check) -> None:
    """Raise `ForeignFile` if a file that begins with `block` is not text in UTF-8, or a check says what is wrong."""
    for check in (unlike_text, *checks):
        if wrong := check(block):
            raise ForeignFile(f"{file}: {wrong}")


def _in(encoding: str) -> str:
    return f"text in {encoding}, expected UTF-8; convert it, for example with iconv -f {encoding} -t UTF-8"


def _is_utf8(block: bytes, many: float) -> bool:
    """Return whether fewer than `many` bytes of a block are invalid UTF-8, or no more than it has other characters.

    Characters of ASCII are left aside: they are the same in most encodings.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(block)  # which may end within a character
    except UnicodeDecodeError:
        text = block.decode(errors="surrogateescape")
        invalid = len(re.findall("[\udc80-\udcff]", text))
        valid = len(re.findall("[^\0-\x7f]", text)) - invalid
        return invalid < many or invalid <= valid
    return True


def _plain_share(encoding: str, block: bytes) -> float:
    """Return the share of spaces, line ends and signs of ASCII in a block; 0 if it cannot be in this encoding.

    Letters are left aside: the most frequent character of Chinese is one of them with its bytes exchanged.
    """
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(block)
    except UnicodeDecodeError:
        return 0.0
    plain = sum(sign.isspace() or sign.isprintable() for sign in text if sign.isascii() and not sign.isalnum())
    return plain / max(len(text), 1)
