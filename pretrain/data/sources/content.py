"""What a file is, told from its first bytes: text in UTF-8, or something else, which is named with what to do about it.

Looks at the content alone; names and suffixes promise nothing. Free of torch.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from pretrain.data.sources.compression import is_compressed
from pretrain.errors import DataError

BLOCK = 2**16  # bytes of a file that are looked at
MARK = codecs.BOM_UTF8  # a byte order mark, which is no text
# A file is not taken for UTF-8 if so many bytes are not, and more than it has characters outside of ASCII.
FEWEST_INVALID = 3
LEAST_INVALID = 0.001  # of all bytes
MOST_CONTROLS = 0.1  # of all bytes; text has fewer control characters
LEAST_PLAIN = 0.01  # of all characters; text in any script has as many spaces, digits and line ends

Check = Callable[[bytes], str | None]  # the first block of a file -> what is wrong with it and what to do, if anything


class ForeignFile(DataError):
    """A file that is not what its source reads; `data.prepare.on_invalid=skip` leaves it out."""


class _Kind(NamedTuple):
    signature: str  # pattern of the first bytes
    what: str
    fix: str


_UNPACK = "unpack it and name the files that are in it"
_CONVERT = "decompress it, or compress it with gzip, xz, bzip2 or zstd"
_KINDS = (
    _Kind(r"PK(\x03\x04|\x05\x06|\x07\x08)", "a zip archive, as documents of Word and Excel are", _UNPACK),
    _Kind(r"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Kind(r"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    _Kind(r".{257}ustar[ \0]", "a tar archive", _UNPACK),
    _Kind(r"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "compressed with lz4", _CONVERT),
    _Kind(r"\xff\x06\0\0sNaPpY", "compressed with snappy", _CONVERT),
    _Kind(r"\x1f[\x9d\xa0]", "compressed with compress", _CONVERT),
    _Kind(r"LZIP\x01|\x89LZO\0", "compressed with lzip or lzop", _CONVERT),
    _Kind(r"\x5d\0\0..(\xff{8}|.{5}\0{3})", "compressed with lzma", _CONVERT),
    _Kind(r"PAR[1E][^ -~\s]", "a Parquet file", "choose data=parquet for it, or, for fine-tuning, name it .parquet"),
    _Kind(r"ARROW1\0\0|\xff{4}..\0\0", "an Arrow file", "save its table as Parquet"),
    _Kind(r"Obj\x01|ORC\x0a?[^ -~\s]", "an Avro or ORC file", "save its table as Parquet"),
    _Kind(r"%PDF-\d", "a PDF document", "extract its text, for example with pdftotext"),
)
_SIGNATURES = [(re.compile(kind.signature.encode("latin-1"), re.DOTALL), kind) for kind in _KINDS]
_MARKS = (  # the longer ones first: those of UTF-32 begin like those of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SPREAD_OBJECT = re.compile(rb'\{(.*[{\[,:])?[ \t\r]*\n\s*["}\]]')  # continues on the next line
_ISO_2022 = re.compile(rb"\x1b\$[@A-D()]")  # shifts to an alphabet of East Asia, which then looks like ASCII
_TEXT_BYTES = bytes(sorted({*range(0x20, 0x7F), *range(0x80, 0x100), *b"\b\t\n\v\f\r\x1b"}))  # no control characters


def unlike_text(block: bytes) -> str | None:
    """Say why a file that begins with `block` is not text in UTF-8, and what to do, or return None for one that is."""
    if is_compressed(block):
        return f"compressed more than once; {_CONVERT}"
    for signature, kind in _SIGNATURES:
        if signature.match(block):
            return f"{kind.what}; {kind.fix}"
    if encoding := next((name for mark, name in _MARKS if block.startswith(mark)), None):
        return _in(encoding)
    if _ISO_2022.search(block):
        return _in("ISO-2022")
    binary = len(block.translate(None, _TEXT_BYTES)) > MOST_CONTROLS * len(block)
    if not binary and _is_utf8(block):
        return None
    wide = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
    if encoding := next((name for name in wide if _reads_as(name, block)), None):
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


def _is_utf8(block: bytes) -> bool:
    """Return whether a block is UTF-8, or close enough for the few bytes that are not to be bad documents."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(block)  # which may end within a character
    except UnicodeDecodeError:
        text = block.decode(errors="surrogateescape")
        invalid = len(re.findall("[\udc80-\udcff]", text))
        valid = len(re.findall("[^\0-\x7f]", text)) - invalid
        return invalid < max(FEWEST_INVALID, LEAST_INVALID * len(block)) or invalid <= valid
    return True


def _reads_as(encoding: str, block: bytes) -> bool:
    """Return whether a block makes sense in an encoding: the decoder takes it, and it has spaces and line ends."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(block)
    except UnicodeDecodeError:
        return False
    return sum(sign.isascii() and (sign.isprintable() or sign.isspace()) for sign in text) > LEAST_PLAIN * len(text)
