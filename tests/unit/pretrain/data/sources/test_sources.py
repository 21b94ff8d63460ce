"""Sources: every document once however the input is cut, and bad input counted or refused by name."""

import gzip
import itertools
import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from reading import read

from pretrain.data.sources.bad_records import OnInvalid
from pretrain.data.sources.base import Cut, PreparedSource, StdlibSource, TextSource
from pretrain.data.sources.structured import HubSource, JsonLinesSource, ParquetSource
from pretrain.errors import ConfigError, DataError


def text_source(path, documents=Cut.auto):
    return TextSource(paths=[str(path)], documents=documents)


def slow_paragraphs(content: bytes) -> list[str]:
    """Documents between blank lines, from the whole content at once."""
    runs = itertools.groupby(content.split(b"\n"), key=lambda line: bool(line.strip()))
    return [b"\n".join(run).rstrip(b"\r\n").decode() for filled, run in runs if filled]


LINES = st.lists(
    st.sampled_from([b"", b" ", b"\r", b"a", b"word word", "é\r".encode(), b"long line " * 5]), max_size=40
)


@settings(max_examples=150)
@given(LINES, st.booleans(), st.booleans(), st.integers(1, 60))
def test_every_line_and_paragraph_once_however_the_file_is_cut(tmp_path_factory, lines, ended, marked, unit_bytes):
    path = tmp_path_factory.mktemp("cut") / "file.txt"
    content = b"\n".join(lines) + b"\n" * ended
    path.write_bytes(b"\xef\xbb\xbf" * marked + content)
    expected = [line.rstrip(b"\r").decode() for line in lines if line.strip()]
    assert read(text_source(path, Cut.line), unit_bytes)[0] == expected
    assert read(text_source(path, Cut.blank_line), unit_bytes)[0] == slow_paragraphs(content)


@settings(max_examples=150)
@given(LINES, st.booleans(), st.integers(1, 60), st.integers(20, 60), st.integers(4, 12))
def test_a_long_text_is_in_its_parts_once_however_it_is_read(
    tmp_path_factory, lines, compressed, unit_bytes, part_bytes, block
):
    path = tmp_path_factory.mktemp("parts") / "book"
    content = b"\n".join(lines) + "é".encode() * len(lines) + b"."
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretrain.data.sources.documents.PART_BYTES", part_bytes)
        patch.setattr("pretrain.data.sources.documents.BLOCK", block)
        source = text_source(path)
        units = source.units(source.inputs(), unit_bytes)
        parts = [raw for unit in units for span in unit for raw in source.read(span, None)]
    assert b"".join(raw.data for raw in parts) == content
    assert [raw.start for raw in parts] == [0, *itertools.accumulate(len(raw.data) for raw in parts)][:-1]
    for number, raw in enumerate(parts):
        raw.data.decode()  # none ends within a character
        assert number * part_bytes <= raw.start <= number * part_bytes + block + 1
    assert len(parts) == max(1, 1 + (len(content) - block - 1) // part_bytes)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 40))
def test_units_hold_every_span_once_and_are_filled(sizes, unit_bytes):
    class Listed(TextSource):
        def ranges(self, inputs, unit_bytes):
            return ((size, size) for size in sizes)

    units = Listed(paths=["x"]).units([], unit_bytes)
    assert [span for unit in units for span in unit] == sizes
    assert all(unit and (sum(unit) <= unit_bytes or len(unit) == 1) for unit in units)
    assert all(sum(one) + other[0] > unit_bytes for one, other in itertools.pairwise(units))


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


@pytest.mark.parametrize("path", ["{}/books", "{}/books/", "{}/books/**", "{}/books/*.txt", "{}/books/a.txt"])
def test_a_file_a_folder_or_a_pattern_without_a_list(tmp_path, path):
    (tmp_path / "books").mkdir()
    for name in ("a.txt", ".hidden"):
        (tmp_path / "books" / name).write_text("text")
    assert read(TextSource(paths=path.format(tmp_path)))[0] == ["text"]


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


def test_nested_fields_of_json_lines_by_dotted_keys(tmp_path):
    path = tmp_path / "web.jsonl"
    records = [{"a": {"b": {"c.d": "deep"}}}, {"a.b.c.d": "own key", "a": {"b": {"c.d": "deep"}}}, {"a": {"b": "text"}}]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, {"a": {"b.c": {"d": "other split"}}}]))
    source = JsonLinesSource(paths=[str(path)], field="a.b.c.d")
    assert read(source) == (["deep", "own key", "other split"], {"missing_field": 1})


def test_a_misspelt_field_is_refused_and_not_counted_away(tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"content": "a"}\n' * 5)
    with pytest.raises(DataError, match=r"web\.jsonl: byte 0: no field 'text', there are \['content'\]"):
        read(JsonLinesSource(paths=[str(path)]))
    assert read(JsonLinesSource(paths=[str(path)]), on_invalid=OnInvalid.skip) == ([], {"missing_field": 5})


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


def test_a_data_set_directory_has_marks_bytes_and_fields_within_fields(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for folder in ("lines", "rows", "latin"):
        (tmp_path / folder).mkdir()
    lines = "".join(json.dumps({"meta": {"text": f"row {row}"}}) + "\n" for row in range(3))
    (tmp_path / "lines" / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert read(HubSource(path=str(tmp_path / "lines"), field="meta.text"))[0] == ["row 0", "row 1", "row 2"]
    rows = pa.table({"text": pa.array([b"one", "\ufefftwo".encode(), b"\xff"])})
    parquet.write_table(rows, tmp_path / "rows" / "train.parquet")
    assert read(HubSource(path=str(tmp_path / "rows"))) == (["one", "two", "\ufffd"], {"invalid_utf8": 1})
    (tmp_path / "latin" / "train.txt").write_bytes("où ça coûte\n".encode("latin-1") * 9)
    with pytest.raises((ConfigError, DataError), match=r"latin.*train.txt: probably not in UTF-8"):
        read(HubSource(path=str(tmp_path / "latin")))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TextSource, {}),
        (TextSource, {"paths": [5]}),
        (TextSource, {"paths": ""}),
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
