"""Files as people have them, drawn from a seed: in any encoding, compression, format and line ends, under any name.

Each is read as the product reads it, and must give exactly the texts that were written or an error that names the file.

    python tests/support/drawn_files.py 300
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet
from reading import read

from finetune.data.records import read_records
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.base import Cut, ReadableSource, TextSource
from pretrain.data.sources.structured import JsonLinesSource, ParquetSource
from pretrain.errors import HeadwaterError

PATTERN_SIGNS = True
NAMES = ["corpus", "with spaces", "文字", "данные", "it's", 'say "this"', "a,b=c", "café", "x.y.z", "-dash", "#1"]
NAMES_OF_PATTERNS = ["part[1]", "[x]", "a*b", "what?", "**", "~tilde", "{a,b}"]

_WORDS = {
    "French": "été déjà où çà garçon forêt naïve cœur élève hôtel",
    "Russian": "съешь ещё этих мягких французских булок да выпей чаю",
    "Chinese": "我 能 吞下 玻璃 而 不 伤身体 一二三 天地玄黄 宇宙洪荒",
    "Japanese": "いろは にほへと ちりぬるを 漢字 カタカナ 東京 日本語 です",
    "Korean": "나는 유리를 먹을 수 있어요 그래도 아프지 않아요",
    "many": "the मैं काँच ฉัน שלום مرحبا 👍🏽 é e\u0301 𝔘 a\u2028b c\u0085d ½ “quoted” it's \t \\n { ,",
    "English": "plain words of one byte each, nothing else; it is 10 % of (all) texts",
}
WORDS = {language: words.split(" ") for language, words in _WORDS.items()}
ENCODINGS = {
    "utf-8": [*WORDS],
    "utf-8-sig": [*WORDS],
    **{f"utf-{bits}{end}": [*WORDS] for bits in (16, 32) for end in ("", "-le", "-be")},
    "latin-1": ["English"],
    "cp1252": ["French", "English"],
    "mac_roman": ["French"],
    "cp1251": ["Russian"],
    "koi8-r": ["Russian"],
    "gbk": ["Chinese", "Japanese"],
    "shift-jis": ["Japanese"],
    "euc-jp": ["Japanese"],
    "iso2022_jp": ["Japanese"],
    "euc-kr": ["Korean"],
}
STRINGS = [pa.string(), pa.large_string(), pa.string_view()]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view()]
VIEWS = [pa.string_view(), pa.binary_view()]  # Arrow makes no dictionaries of them
SHAPES_OF_JSON = ["list", "indented list", "indented"]


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", data)
    return file.getvalue()


def tarred(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def halves(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: pack(data[: len(data) // 2]) + pack(data[len(data) // 2 :])


def torn(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: pack(data)[:-5]


READ = {  # suffix -> packers whose files are read
    "": [bytes],
    ".gz": [gzip.compress, halves(gzip.compress), lambda data: gzip.compress(data) + bytes(512)],
    ".xz": [lzma.compress, halves(lzma.compress), lambda data: lzma.compress(data) + bytes(4)],
    ".bz2": [bz2.compress, halves(bz2.compress)],
    ".zst": [zstd, halves(zstd), lambda data: b"\x5a\x2a\x4d\x18\x03\0\0\0abc" + zstd(data)],
}
REFUSED = {
    ".gz": [torn(gzip.compress), lambda data: gzip.compress(gzip.compress(data))],
    ".tgz": [lambda data: gzip.compress(tarred(data))],
    ".xz": [torn(lzma.compress), lambda data: lzma.compress(data) + b"more"],
    ".bz2": [torn(bz2.compress), lambda data: bz2.compress(data) + bz2.compress(data)[:30]],
    ".zst": [torn(zstd)],
    ".lz4": [lambda data: pa.Codec("lz4").compress(data, asbytes=True)],
    ".zip": [zipped],
    ".tar": [tarred],
}


class Drawn(NamedTuple):
    """A file that was written."""

    choices: str  # all that was drawn
    path: Path
    texts: list[str] | None  # that must arrive; None if the file must be refused
    read: Callable[[], list[str]]


def draw_file(seed: int, folder: Path) -> Drawn:
    """Write the file of a seed into an empty folder."""
    draw = random.Random(seed)
    form = draw.choice(["file", "line", "blank_line", "jsonl", "jsonl", "csv", "tsv", "parquet", "parquet"])
    tuning = form in {"csv", "tsv"} or (form in {"jsonl", "parquet"} and draw.random() < 0.4)
    return (_draw_parquet if form == "parquet" else _draw_text)(draw, form, tuning, folder)


def _draw_text(draw: random.Random, form: str, tuning: bool, folder: Path) -> Drawn:
    encoding = draw.choice([*["utf-8"] * 20, *["utf-8-sig"] * 10, *ENCODINGS])
    end = draw.choice([*["\n"] * 4, *["\r\n"] * 4, "\r"])
    texts = _draw_texts(draw, draw.choice(ENCODINGS[encoding]))
    if form in {"file", "line", "tsv"}:
        texts = [text.replace("\n", " ").replace("\t", " ") for text in texts]
    if form == "blank_line":
        texts = [text.replace("\n", end) for text in texts]
    shape = draw.choice(["usual"] * 9 + SHAPES_OF_JSON) if form == "jsonl" else "usual"
    content = _content(form, texts, end, shape) + end * (draw.random() < 0.7)
    try:
        data = content.encode(encoding)
    except UnicodeEncodeError:  # ½ in GBK, say
        encoding, data = "utf-8", content.encode()
    readable = draw.random() < 0.8
    suffix, packers = draw.choice([*(READ if readable else REFUSED).items()])
    packer = draw.randrange(len(packers))
    given = draw.choice([suffix, suffix, suffix.upper(), "", ".gz", ".zst"])
    path = folder / f"{_draw_name(draw)}{f'.{form}' if tuning else draw.choice(['.txt', ''])}{given}"
    path.write_bytes(packers[packer](data))

    utf8 = data.removeprefix(b"\xef\xbb\xbf") == content.encode()
    one_line = form not in {"file", "csv"} and "\n" not in content and "\r" in content[:-1]
    named = not tuning or given.lower() in READ
    expected = [content] if form == "file" else texts
    choices = f"{form}, {shape}, {encoding}, {end!r}, {suffix or 'plain'} {packer} as {path.name!r}, tuning={tuning}"
    fine = utf8 and readable and named and not one_line and shape == "usual"
    return Drawn(choices, path, expected if fine else None, _reader(draw, form, tuning, path))


def _content(form: str, texts: list[str], end: str, shape: str) -> str:
    if form in {"csv", "tsv"}:
        file = io.StringIO()
        options = {"quoting": csv.QUOTE_NONE, "quotechar": None, "delimiter": "\t"}
        options = options if form == "tsv" else {"quoting": csv.QUOTE_ALL}
        rows = [["label", "text"], *(["x", text] for text in texts)]
        csv.writer(file, lineterminator=end, **options).writerows(rows)
        return file.getvalue().removesuffix(end)
    if form != "jsonl":
        return (end * 2 if form == "blank_line" else end).join(texts)
    records = [{"id": number, "text": text} for number, text in enumerate(texts)]
    if shape == "indented list":
        return json.dumps(records, indent=2)
    lines = [json.dumps(one, ensure_ascii=False, indent=2 if shape == "indented" else None) for one in records]
    return f"[{f',{end}'.join(lines)}]" if shape == "list" else end.join(lines)


def _draw_parquet(draw: random.Random, form: str, tuning: bool, folder: Path) -> Drawn:
    texts = _draw_texts(draw, draw.choice([*WORDS]))
    # Fine-tuning leaves values as they are stored: bytes are no text there.
    kind = draw.choice(STRINGS if tuning else [*STRINGS, *BYTES, pa.list_(pa.string()), pa.int64()])
    wrong = kind in (pa.list_(pa.string()), pa.int64())
    if wrong:
        column = pa.array([[text] if pa.types.is_list(kind) else len(text) for text in texts], kind)
    else:
        column = pa.array(texts).cast(kind)
        if draw.random() < 0.3 and kind not in VIEWS:
            column = column.dictionary_encode()
    field = draw.choice(["text", "a b", "文字", "meta.text", "meta.inner.text"])
    outer, *inner = field.split(".") if draw.random() < 0.6 else [field]
    described = f"{column.type} {field!r}"
    for name in reversed(inner):
        column = pa.StructArray.from_arrays([column], [name])
    path = folder / f"{_draw_name(draw)}{'.parquet' if tuning else draw.choice(['.parquet', '', '.jsonl'])}"
    rows = None if kind in VIEWS else draw.randint(1, 20)  # Arrow does not cut them into row groups
    packing = draw.choice(["none", "snappy", "zstd", "gzip"])
    table = pa.table({"id": range(len(texts)), outer: column})
    parquet.write_table(table, path, compression=packing, row_group_size=rows)

    shape = draw.choice(["usual"] * 8 + ["lines of JSON", "compressed", "torn", "read as lines"])
    if shape == "lines of JSON":
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    elif shape == "compressed":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif shape == "torn":
        path.write_bytes(path.read_bytes()[: -draw.randint(1, 40)])
    elif shape == "read as lines":
        form, tuning = "jsonl", False
    choices = f"Parquet, {shape}, {described} in {outer!r}, {packing} as {path.name!r}, tuning={tuning}"
    fine = shape == "usual" and not wrong
    return Drawn(choices, path, texts if fine else None, _reader(draw, form, tuning, path, field))


def _draw_texts(draw: random.Random, language: str) -> list[str]:
    """Draw uneven texts of up to three lines."""
    words = WORDS[language]
    texts = [" ".join(draw.choices(words, k=draw.randint(2, 30))).strip() for _ in range(draw.randint(1, 40))]
    return ["\n".join(texts[at : at + draw.randint(1, 3)]) for at in range(0, len(texts), 3)]


def _draw_name(draw: random.Random) -> str:
    return draw.choice([*NAMES, *NAMES_OF_PATTERNS] if PATTERN_SIGNS else NAMES)


def _reader(draw: random.Random, form: str, tuning: bool, path: Path, field: str = "text") -> Callable[[], list[str]]:
    """Return what reads the file as the product does, in units of any size."""
    if tuning:
        return lambda: _tuning_texts(str(path), field)
    named: dict[str, Any] = {"paths": [str(path)]}
    if form in {"jsonl", "parquet"}:
        source: ReadableSource = {"jsonl": JsonLinesSource, "parquet": ParquetSource}[form](**named, field=field)
    else:
        source = TextSource(**named, documents=Cut[form])
    unit_bytes = draw.choice([1, 100, 2**20])
    return lambda: _pretraining_texts(source, unit_bytes)


def _pretraining_texts(source: ReadableSource, unit_bytes: int) -> list[str]:
    texts, counts = read(source, unit_bytes)
    assert not counts, f"counted and left out or mended: {counts}"
    return texts


def _tuning_texts(file: str, field: str) -> list[str]:
    bad = BadRecords(file, allowed=0.1)
    texts = [record.values["text"] for record in read_records(file, {"text": field}, bad)]
    bad.settle(len(texts))
    assert not bad.counts, f"counted and left out: {dict(bad.counts)}"
    return texts


def outcome(drawn: Drawn) -> str:
    """Read a drawn file; return "read", "refused", or what is wrong."""
    try:
        texts = drawn.read()
    except HeadwaterError as error:
        if drawn.path.name not in str(error):
            return f"WRONG: the error does not name the file: {error}"
        return "refused" if drawn.texts is None else f"WRONG: refused, though it is fine: {error}"
    except Exception:
        return f"WRONG: {traceback.format_exc()}"
    if drawn.texts is None:
        return f"WRONG: read, though it should be refused: {texts!r:.200}"
    return "read" if texts == drawn.texts else f"WRONG: {texts!r:.200}, expected {drawn.texts!r:.200}"


def main() -> None:
    """Draw as many files as the first argument says, print what is wrong, and how often each outcome is."""
    outcomes: Counter[str] = Counter()
    for seed in range(int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_file(seed, Path(folder))
            found = outcome(drawn)
        outcomes[found[:7].rstrip(":")] += 1
        if found.startswith("WRONG"):
            print(f"seed {seed}: {drawn.choices}\n    {found}")
    print(dict(outcomes))


if __name__ == "__main__":
    main()
