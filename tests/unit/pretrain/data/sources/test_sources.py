"""Sources: every document once however the input is cut, and bad input counted or refused by name."""

import bz2
import gzip
import itertools
import json
import lzma
import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pretrain.data.sources.bad_records import BadRecords, OnInvalid
from pretrain.data.sources.base import Cut, PreparedSource, ReadableSource, StdlibSource, TextSource
from pretrain.data.sources.structured import HubSource, JsonLinesSource, ParquetSource
from pretrain.errors import ConfigError, DataError


def read(source: ReadableSource, unit_bytes=2**20, on_invalid=OnInvalid.replace):
    """All texts of a source, and what was counted."""
    bad = BadRecords(policy=on_invalid)
    units = source.units(source.inputs(), unit_bytes)
    return [text for unit in units for text in source.texts(unit, bad)], dict(bad.counts)


def text_source(path, documents=Cut.file):
    return TextSource(paths=[str(path)], documents=documents)


def slow_paragraphs(content: bytes) -> list[str]:
    """Documents between blank lines, from the whole content at once."""
    runs = itertools.groupby(content.split(b"\n"), key=lambda line: bool(line.strip()))
    return [b"\n".join(run).rstrip(b"\r\n").decode() for filled, run in runs if filled]


LINES = st.lists(
    st.sampled_from([b"", b" ", b"\r", b"a", b"word word", "é\r".encode(), b"long line " * 5]), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(LINES, st.booleans(), st.integers(1, 60))
def test_every_line_and_paragraph_once_however_the_file_is_cut(tmp_path_factory, lines, ended, unit_bytes):
    path = tmp_path_factory.mktemp("cut") / "file.txt"
    content = b"\n".join(lines) + b"\n" * ended
    path.write_bytes(content)
    expected = [line.rstrip(b"\r").decode() for line in lines if line.strip()]
    assert read(text_source(path, Cut.line), unit_bytes)[0] == expected
    assert read(text_source(path, Cut.blank_line), unit_bytes)[0] == slow_paragraphs(content)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 40))
def test_units_hold_every_span_once_and_are_filled(sizes, unit_bytes):
    class Listed(TextSource):
        def ranges(self, inputs, unit_bytes):
            return ((size, size) for size in sizes)

    units = Listed(paths=["x"]).units([], unit_bytes)
    assert [span for unit in units for span in unit] == sizes
    assert all(unit and (sum(unit) <= unit_bytes or len(unit) == 1) for unit in units)
    assert all(sum(one) + other[0] > unit_bytes for one, other in itertools.pairwise(units))


def write_zst(path, data):
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


WRITERS = {
    ".gz": lambda path, data: path.write_bytes(gzip.compress(data)),
    ".xz": lambda path, data: path.write_bytes(lzma.compress(data)),
    ".bz2": lambda path, data: path.write_bytes(bz2.compress(data)),
    ".zst": write_zst,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_compressed_files_hold_the_same_documents(tmp_path, suffix):
    content = "".join(f"line {number} é\n\n" for number in range(5000)).encode()
    plain, packed = tmp_path / "plain.txt", tmp_path / f"packed.txt{suffix}"
    plain.write_bytes(content)
    WRITERS[suffix](packed, content)
    # Files of several members, as `cat a.gz b.gz` makes them, are read to their end.
    twice = tmp_path / f"twice.txt{suffix}"
    twice.write_bytes(packed.read_bytes() * 2)
    for cut in Cut:
        texts, _ = read(text_source(plain, cut), unit_bytes=1000)
        assert read(text_source(packed, cut), unit_bytes=1000)[0] == texts
        doubled = [content.decode() * 2] if cut is Cut.file else texts * 2
        assert read(text_source(twice, cut))[0] == doubled


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_damaged_compressed_file_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"torn.txt{suffix}"
    WRITERS[suffix](path, bytes(range(256)) * 1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"torn\.txt{suffix}: cannot be read"):
        read(text_source(path))


def test_stdlib_is_this_pythons_own_source_without_tests():
    source = StdlibSource()
    inputs = source.inputs()
    names = [entry.name for entry in inputs]
    assert "argparse.py" in names and "json/decoder.py" in names
    assert not [name for name in names if {"test", "tests", "idlelib", "site-packages"} & set(Path(name).parts[:-1])]
    assert len(set(names)) == len(names) and names == [entry.name for entry in source.inputs()]
    texts, counts = read(source)
    assert (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text() in texts
    assert len(texts) + sum(counts.values()) == len(names)
    assert sum(len(text) for text in texts) > 5e6


def test_patterns_are_sorted_and_name_each_file_once(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "other.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    source = TextSource(paths=[f"{tmp_path}/**/*.txt", f"{tmp_path}/a.txt"])
    assert read(source)[0] == ["a.txt", "b.txt", "deep/c.txt"]


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"data\.sources\.\*\.paths: .*\*\.text matches no file"):
        TextSource(paths=[f"{tmp_path}/*.txt", f"{tmp_path}/*.text"]).inputs()


def test_a_file_that_is_gone_is_refused(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"link\.txt, a link to .*nowhere\.txt: cannot be read"):
        TextSource(paths=[f"{tmp_path}/*.txt"]).inputs()


BAD_TEXT = {"invalid_utf8": (b"good \xff bad", "good \ufffd bad", 5), "nul_bytes": (b"good \0", "good \ufffd", 5)}


@pytest.mark.parametrize("reason", BAD_TEXT)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_invalid_text_follows_the_policy(tmp_path, reason, suffix):
    bad, mended, offset = BAD_TEXT[reason]
    path = tmp_path / f"bad.txt{suffix}"
    content = b"first\n" + bad + b"\nlast\n"
    path.write_bytes(gzip.compress(content) if suffix else content)
    source = text_source(path, Cut.line)
    assert read(source) == (["first", mended, "last"], {reason: 1})
    assert read(source, on_invalid=OnInvalid.skip) == (["first", "last"], {reason: 1})
    with pytest.raises(DataError, match=rf"bad\.txt{suffix}: byte {6 + offset}: .*on_invalid=replace"):
        read(source, on_invalid=OnInvalid.fail)


def test_empty_files_and_documents_are_counted(tmp_path):
    for name, content in {"a.txt": "", "b.txt": " \n\t\n", "c.txt": "text"}.items():
        (tmp_path / name).write_text(content)
    assert read(text_source(tmp_path / "*.txt")) == (["text"], {"empty_file": 1, "empty": 1})
    assert read(text_source(tmp_path / "*.txt"), on_invalid=OnInvalid.fail)[0] == ["text"]


def test_a_line_of_10_mb(tmp_path):
    path = tmp_path / "long.txt"
    long = "word " * 2_000_000
    path.write_text(f"first\n{long}\nlast\n")
    assert read(text_source(path, Cut.line))[0] == ["first", long, "last"]


def test_a_document_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.sources.documents.DOCUMENT_LIMIT", 100)
    path = tmp_path / "long.txt"
    path.write_text("short\n\n" + "line\n" * 30 + "x" * 200)
    for cut, byte in ((Cut.file, 0), (Cut.blank_line, 7), (Cut.line, 157)):
        with pytest.raises(DataError, match=rf"long\.txt: byte {byte}: a document of more than 100 bytes"):
            read(text_source(path, cut))


def test_json_lines(tmp_path):
    path = tmp_path / "web.jsonl"
    texts = ["plain", "two\nlines", "é \U0001f600", "x" * 3000, "escaped \u2028"]
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    for unit_bytes in (10, 100, 2**20):
        assert read(JsonLinesSource(paths=[str(path)]), unit_bytes) == (texts, {})


BAD_LINES = {
    b'{"text": "torn': "bad_json",
    b"[1, 2]": "bad_json",
    b"[" * 100_000: "bad_json",
    b'{"txt": "other key"}': "missing_field",
    b'{"text": null}': "missing_field",
    b'{"text": 3}': "missing_field",
    b'{"text": ""}': "empty",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20].decode())
def test_bad_json_lines_are_counted_or_refused_with_their_number(tmp_path, line):
    path = tmp_path / "web.jsonl"
    good = b'{"text": "good"}\n'
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    source, reason = JsonLinesSource(paths=[str(path)]), BAD_LINES[line]
    assert read(source) == (["good", "good"], {reason: 1})
    if reason == "empty":
        return
    with pytest.raises(DataError, match=r"web\.jsonl: line 3: "):
        read(source, on_invalid=OnInvalid.fail)


def test_a_lone_surrogate_is_invalid_text(tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n{"text": "good"}\n')
    texts, counts = read(JsonLinesSource(paths=[str(path)]))
    assert texts[1] == "good" and texts[0].startswith("a\ufffd") and counts == {"invalid_utf8": 1}
    assert read(JsonLinesSource(paths=[str(path)]), on_invalid=OnInvalid.skip)[0] == ["good"]


def test_a_misspelt_field_is_refused_and_not_counted_away(tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"content": "a"}\n' * 5)
    with pytest.raises(DataError, match=r"web\.jsonl: byte 0: no field 'text', there are \['content'\]"):
        read(JsonLinesSource(paths=[str(path)]))
    assert read(JsonLinesSource(paths=[str(path)]), on_invalid=OnInvalid.skip) == ([], {"missing_field": 5})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    texts = [f"row {number} é" for number in range(1000)]
    table = pa.table({"id": range(1000), "text": pa.array(texts).cast(kind)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    parquet.write_table(table.slice(0, 3), tmp_path / "b.parquet")
    source = ParquetSource(paths=[f"{tmp_path}/*.parquet"])
    assert len(source.units(source.inputs(), 1)) == 16
    for unit_bytes in (1, 3000, 2**20):
        assert read(source, unit_bytes) == (texts + texts[:3], {})


def test_parquet_nulls_and_invalid_bytes_name_their_row(tmp_path):
    rows = pa.array([b"a", None, b"\xff", b"b"], pa.binary())
    parquet.write_table(pa.table({"body": rows}), tmp_path / "a.parquet", row_group_size=1)
    source = ParquetSource(paths=[f"{tmp_path}/a.parquet"], field="body")
    assert read(source, on_invalid=OnInvalid.skip) == (["a", "b"], {"missing_field": 1, "invalid_utf8": 1})
    with pytest.raises(DataError, match=r"a\.parquet: row 1: column 'body' is null"):
        read(source, on_invalid=OnInvalid.fail)
    source.field = "text"
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text'; .*\['body'\]"):
        read(source)


def test_parquet_of_numbers_and_no_parquet_are_refused(tmp_path):
    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"numbers\.parquet: column 'text' is int64, expected strings"):
        read(ParquetSource(paths=[f"{tmp_path}/numbers.parquet"]))
    with pytest.raises(DataError, match=r"broken\.parquet: not a readable Parquet file"):
        read(ParquetSource(paths=[f"{tmp_path}/broken.parquet"]))


def test_a_data_set_directory_streams_shard_by_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    texts = [f"row {number}" for number in range(90)]
    for shard in range(3):
        rows = pa.table({"body": texts[shard * 30 : shard * 30 + 30]})
        parquet.write_table(rows, tmp_path / f"train-{shard}.parquet")
    source = HubSource(path=str(tmp_path), field="body")
    units = source.units(source.inputs(), 2**20)
    assert len(units) == 3
    assert read(source)[0] == texts
    source.field = "text"
    with pytest.raises(DataError, match=r"no column 'text'; .*\['body'\]"):
        read(source)
    with pytest.raises(ConfigError, match=r"data\.sources\.\*\.path=.*split nothing"):
        read(HubSource(path=str(tmp_path), split="nothing"))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TextSource, {}),
        (JsonLinesSource, {"paths": []}),
        (ParquetSource, {}),
        (HubSource, {}),
        (PreparedSource, {}),
        (StdlibSource, {"weight": 0.0}),
    ],
)
def test_configurations_without_an_input_are_refused(kind, values):
    with pytest.raises(ValueError, match=r"data\.sources\.\*\."):
        kind(**values)
