"""What a file is: text in UTF-8 is read, and anything else is named with what to do and never trained on as bytes."""

import array
import gzip
import io
import json
import random
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from reading import read

from pretrain.data.sources.bad_records import OnInvalid
from pretrain.data.sources.base import Cut, TextSource
from pretrain.data.sources.compression import BLOCK
from pretrain.data.sources.content import unlike_json_lines, unlike_text
from pretrain.data.sources.structured import JsonLinesSource
from pretrain.errors import DataError

TEXTS = {
    "French": "Les élèves français étaient à la forêt, où ça coûte.",
    "Russian": "Съешь же ещё этих мягких французских булок",
    "Greek": "Μπορώ να φάω σπασμένα γυαλιά",
    "Chinese": "我能吞下玻璃而不伤身体，一二三。",
    "Japanese": "いろはにほへと ちりぬるを 漢字カタカナ。",
    "Korean": "나는 유리를 먹을 수 있어요",
    "Thai": "ฉันกินกระจกได้ แต่มันไม่",
    "Hindi": "मैं काँच खा सकता हूँ और मुझे चोट नहीं",
    "Hebrew": "אני יכול לאכול זכוכית",
    "Arabic": "أنا قادر على أكل الزجاج",
    "Georgian": "მინას ვჭამ და არა მტკივა",
    "signs": "🙂🙃 ok 👍🏽 “quoted” — \x1b[31mred\x1b[0m \u2028 \u0085 e\u0301",
    "English": "The river was wide.",
}
WIDE = [f"utf-{bits}{end}" for bits in (16, 32) for end in ("", "-le", "-be")]
NATIONAL = ["latin-1", "cp1252", "cp1251", "koi8-r", "cp1253", "iso8859-7", "tis-620", "cp1255", "cp1256", "mac-roman"]
NATIONAL += ["gbk", "gb18030", "big5", "shift-jis", "euc-jp", "euc-kr", "johab", "iso2022-jp", "iso2022-kr", "cp037"]


def encoded(text: str, encoding: str) -> bytes | None:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return None


@pytest.mark.parametrize("language", TEXTS)
def test_text_in_any_language_is_utf8_or_named(language):
    for lines in (1, 2, 500):
        text = f"{TEXTS[language]}\n" * lines
        for encoding in ("utf-8", "utf-8-sig"):
            assert unlike_text(text.encode(encoding)[:BLOCK]) is None
        for encoding in WIDE:
            said = unlike_text(text.encode(encoding)[:BLOCK])
            assert said and encoding.upper().replace("-LE", "LE").replace("-BE", "BE") in said and "iconv" in said
        for encoding in NATIONAL:
            data = encoded(text, encoding)
            if data and data.decode(errors="replace") != text:
                said = unlike_text(data[:BLOCK])
                assert said and ("not in UTF-8" in said or "ISO-2022" in said), encoding


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("a.txt", "text\n" * 100)
    else:
        with tarfile.open(fileobj=file, mode="w", format=getattr(tarfile, kind)) as tarred:
            member = tarfile.TarInfo("a.txt")
            member.size = 500
            tarred.addfile(member, io.BytesIO(b"text\n" * 100))
    return file.getvalue()


def arrow(kind: str) -> bytes:
    file, table = io.BytesIO(), pa.table({"text": ["some text"] * 100})
    if kind == "parquet":
        parquet.write_table(table, file, compression="none")
    else:
        with {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}[kind](file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


DRAW = random.Random(3)
FOREIGN = {
    "a zip archive": archive("zip"),
    "a tar archive": archive("GNU_FORMAT"),
    "a tar archive;": archive("PAX_FORMAT"),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4" + DRAW.randbytes(90),
    "a RAR archive": b"Rar!\x1a\x07\x01\0" + DRAW.randbytes(90),
    "compressed with lz4": pa.Codec("lz4").compress(b"text\n" * 100, asbytes=True),
    "compressed with snappy": b"\xff\x06\0\0sNaPpY" + DRAW.randbytes(90),
    "compressed data, expected text": gzip.compress(b"text\n" * 100),
    "a Parquet file; choose data=parquet": arrow("parquet"),
    "an Arrow file": arrow("file"),
    "an Arrow file;": arrow("stream"),
    "a PDF document; extract its text": b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 9,
    "binary data": Path(sys.executable).read_bytes()[:BLOCK],
    "binary data, expected": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0\x08\6\0\0\0" + DRAW.randbytes(5000),
    "binary data, expected text": b"SQLite format 3\0\x10\0\1\1\0" + b"\0\0\0\1" * 20 + b"stored text " * 900,
    "(binary data|.* or no text)": DRAW.randbytes(5000),
    "": array.array("H", [DRAW.randrange(50_000) for _ in range(5000)]).tobytes(),  # ids of tokens
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_text_is_refused_by_name(tmp_path, what):
    path = tmp_path / "a.txt"
    path.write_bytes(FOREIGN[what])
    if what.startswith("compressed data"):
        path.write_bytes(gzip.compress(FOREIGN[what]))
    for source in (TextSource(paths=[str(path)], documents=Cut.line), JsonLinesSource(paths=[str(path)])):
        with pytest.raises(DataError, match=rf"a\.txt: .*{what}.*on_invalid=skip"):
            read(source)


def test_under_skip_a_file_that_is_no_text_is_left_out_and_counted_once(tmp_path):
    (tmp_path / "a.txt").write_text("first\n" * 30)
    (tmp_path / "b.txt").write_bytes("Съешь ещё\n".encode("utf-16") * 100)
    (tmp_path / "c.txt").write_bytes(gzip.compress("où ça coûte\n".encode("latin-1") * 100))
    source = TextSource(paths=[f"{tmp_path}/*.txt"], documents=Cut.line)
    assert read(source, 100, OnInvalid.skip) == (["first"] * 30, {"foreign_file": 2})


@pytest.mark.parametrize("wrong", [b"\xe9", b"\0"], ids=["invalid", "NUL"])
def test_a_few_wrong_bytes_are_bad_documents_and_many_are_another_file(tmp_path, wrong):
    path = tmp_path / "a.txt"
    source = TextSource(paths=[str(path)], documents=Cut.line)
    for number, size, fine in ((2, 20, True), (3, 20, False), (60, 2000, True), (70, 2000, False)):
        lines = [b"x" * 30 + wrong * (at < number) for at in range(size)]
        path.write_bytes(b"\n".join(lines))
        if fine:
            assert sum(read(source)[1].values()) == number
        else:
            with pytest.raises(DataError, match=r"a\.txt: (probably not in UTF-8|binary data)"):
                read(source)


def test_invalid_bytes_among_more_characters_that_are_valid_are_bad_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9\n" * 10 + "été\n".encode() * 5)
    texts, counts = read(TextSource(paths=[str(path)], documents=Cut.line))
    assert texts == ["caf\ufffd"] * 10 + ["été"] * 5 and counts == {"invalid_utf8": 10}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_byte_order_mark_is_no_text_and_moves_no_position(tmp_path, pack):
    path, mark = tmp_path / "a.txt", b"\xef\xbb\xbf"
    cuts = Cut.file, Cut.line, Cut.blank_line
    whole, lines, paragraphs = (TextSource(paths=[str(path)], documents=cut) for cut in cuts)
    for content in (
        mark + b"one\ntwo\n\nthree",
        mark + b"one\ntwo\n\n" + mark + b"three",
        mark * 2 + b"one\ntwo\n\nthree",
    ):
        path.write_bytes(pack(content))  # the second is two files that were joined
        assert read(whole) == (["one\ntwo\n\nthree"], {})
        assert read(lines, 4) == (["one", "two", "three"], {"empty": 1})
        assert read(paragraphs, 4) == (["one\ntwo", "three"], {})
    path.write_bytes(pack(mark + b"\xffirst\n"))
    for source in (whole, lines, paragraphs):
        with pytest.raises(DataError, match=r"a\.txt: byte 3: not valid UTF-8"):
            read(source, on_invalid=OnInvalid.fail)
    path.write_bytes(pack(mark))
    for source in (whole, lines, paragraphs):
        assert read(source) == ([], {"empty": 1})
    path.write_bytes(pack(b"".join(mark + json.dumps({"text": f"row {row}"}).encode() + b"\r\n" for row in range(9))))
    source = JsonLinesSource(paths=[str(path)])
    assert read(source, 30) == ([f"row {row}" for row in range(9)], {})


def test_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    lines, paragraphs = (TextSource(paths=[str(path)], documents=cut) for cut in (Cut.line, Cut.blank_line))
    path.write_bytes("one\r\ntwo\u2028\x0b\x0c\x1c\u0085 two\r\rtwo\n\r\nthree".encode())
    assert read(lines)[0] == ["one", "two\u2028\x0b\x0c\x1c\u0085 two\r\rtwo", "three"]
    assert read(paragraphs)[0] == ["one\r\ntwo\u2028\x0b\x0c\x1c\u0085 two\r\rtwo", "three"]
    path.write_bytes(b"one\rtwo\r\rthree\r")
    for source in (lines, paragraphs, JsonLinesSource(paths=[str(path)])):
        with pytest.raises(DataError, match=r"a\.txt: its lines end in carriage returns alone; .* tr"):
            read(source)
    assert read(TextSource(paths=[str(path)])) == (["one\rtwo\r\rthree\r"], {})


RECORDS = [{"text": f"row {row}"} for row in range(5)]
LIST = "a JSON list, expected one object a line; .*jq -c '.\\[\\]'"
NO_LINES = {
    "[" + ",".join(map(json.dumps, RECORDS)) + "]": LIST,
    "[" + ",\n".join(map(json.dumps, RECORDS)) + "]\n": LIST,
    "\ufeff\n [\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]": LIST,
    json.dumps(RECORDS, indent=1): LIST,
    json.dumps([{"text": "long " * BLOCK}]): LIST,
    json.dumps(RECORDS[0], indent=2): "JSON objects of several lines each",
    '{"a": {\n"text": "b"}}\n': "JSON objects of several lines each",
    '{"a": [1,\r\n"b"], "text": "c"}\n': "JSON objects of several lines each",
}


@pytest.mark.parametrize("content", NO_LINES, ids=range(len(NO_LINES)))
def test_json_that_is_not_one_object_a_line_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"a\.jsonl: {NO_LINES[content]}"):
        read(JsonLinesSource(paths=[str(path)]))


def test_bad_first_lines_of_json_are_bad_records():
    good = b'\n{"text": "good"}\n'
    for first in (b'{"text": "torn', b'{"text": ', b"[1, 2]", b"[]", b"not JSON", b"", b'"a"', b"{}"):
        assert unlike_json_lines(first + good) is None
