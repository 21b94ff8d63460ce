"""Reading of records: values are those that an independent reading gives, and what cannot be read is named."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.data.records import read_records
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.content import unlike_text
from pretrain.errors import ConfigError, DataError

COLUMNS = {"text": "sentence", "label": "class"}
AWKWARD = [
    ("NA", "01"),
    ("None", ""),
    ("", "nan"),
    ("tabs\tand, commas", "1.0"),
    ('she said "no"', "true"),
    ("two\nlines", "null"),
    ("\r\nline ends of Windows", "-0"),
    (" spaces ", "1e3"),
    ("naïve 文字 🙂 \u2028 \u00a0", "ß"),
]


def read(file, columns=COLUMNS, **options):
    found = BadRecords(str(file), allowed=0.0)
    return [(record.values, record.place) for record in read_records(str(file), columns, found, **options)], found


def values(file, columns=COLUMNS, **options) -> list[tuple]:
    records, found = read(file, columns, **options)
    assert not found.counts
    return [tuple(row[role] for role in columns) for row, _ in records]


def cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte_order_mark"])
def test_csv_is_what_arrow_reads_with_all_columns_as_strings(tmp_path, end, mark):
    rows = ["id,sentence,class", *(f"{i},{cell(text)},{cell(label)}" for i, (text, label) in enumerate(AWKWARD))]
    file = tmp_path / "a.csv"
    file.write_bytes(mark + end.join(rows).encode())
    table = pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(["sentence", "class"], pa.string()), strings_can_be_null=False
        ),
    )
    theirs = list(zip(table["sentence"].to_pylist(), table["class"].to_pylist(), strict=True))
    assert values(file) == theirs == AWKWARD


def test_tsv_has_no_quotes(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_bytes('sentence\tclass\n"open\t0\r\n ""\t"NA"\n\na\rb \u2028,c\t\n\t1\n'.encode())
    assert values(file) == [('"open', "0"), (' ""', '"NA"'), ("a\rb \u2028,c", ""), ("", "1")]
    records, _ = read(file)
    assert [place for _, place in records] == [f"{file}:{line}" for line in (2, 3, 5, 6)]


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"))] * 2), max_size=4))
def test_any_text_survives_csv(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("any") / "a.csv"
    content = "\n".join(["sentence,class", *(f"{cell(a)},{cell(b)}" for a, b in rows)]).encode()
    assume(unlike_text(content) is None)  # control characters alone are no text
    file.write_bytes(content)
    assert values(file) == rows


def test_a_place_is_the_line_where_the_record_begins(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('sentence,class\n"one\ntwo\nthree",0\n\nfour,1\n')
    records, _ = read(file)
    assert [place for _, place in records] == [f"{file}:2", f"{file}:6"]


def test_columns_without_a_header(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('"3","title, one","text"\n"4","b","c"\n')
    columns = {"label": "class", "text": "description"}
    assert values(file, columns, header=["class", "title", "description"]) == [("3", "text"), ("4", "c")]


def test_a_header_that_the_file_has_itself_is_refused(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text("class\ttext\n1\ta\n")
    with pytest.raises(ConfigError, match=r"task.header=class,text: .*a.tsv:1: the file's own first line names"):
        values(file, {"label": "class", "text": "text"}, header=["class", "text"])


JSON = [["NA", 1], ["01", "1"], ["", True], [None, 1.5], ["\u2028 文字", ["a", "b"]], [7, {"x": None}]]


def test_json_values_keep_their_types(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"class": label, "sentence": text}, ensure_ascii=False) for text, label in JSON]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(lines).encode())
    assert repr(values(file)) == repr([tuple(row) for row in JSON])
    assert read(file)[0][-1][1] == f"{file}:{2 * len(JSON) - 1}"


@pytest.mark.parametrize(
    "labels", [["NA", "01", None], [1, 0, None], [0.5, float("inf"), 1.0], [["a"], [], ["a", "b"]], [True, False, None]]
)
def test_parquet_values_keep_their_types(tmp_path, labels):
    texts = ["NA", "two\nlines", None]
    file = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"unused": [1, 2, 3], "class": labels, "sentence": texts}), file, row_group_size=2)
    assert repr(values(file)) == repr(list(zip(texts, labels, strict=True)))
    assert [place for _, place in read(file)[0]] == [f"{file}, row {row}" for row in range(3)]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_compressed(tmp_path, suffix, form):
    data = {"csv": b"sentence,class\na,0\n", "jsonl": b'{"sentence": "a", "class": "0"}\n'}[form]
    file = tmp_path / f"a.{form}{suffix}"
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": pa.Codec("zstd").compress}
    file.write_bytes(packed[suffix](data))
    assert values(file) == [("a", "0")]
    file.write_bytes(packed[suffix](data)[:-9])
    with pytest.raises(DataError, match=f"{file}: cannot be read"):
        read(file)


def test_a_directory_that_the_datasets_library_reads(tmp_path, monkeypatch):
    """As a name of the hub is read, from the network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        table = pa.table({"sentence": [f"{split} {row}" for row in range(3)], "class": ["NA", "01", None]})
        pa.parquet.write_table(table, folder / f"{split}.parquet")
    records, _ = read(f"{folder}:test")
    assert records[1] == ({"text": "test 1", "label": "01"}, f"{folder}, row 1")
    with pytest.raises(ConfigError, match=rf"{folder}: choose a split: {folder}:train, {folder}:test"):
        read(folder)
    with pytest.raises(ConfigError, match=r"cannot be read as a data set .*: Unknown split \"dev\""):
        read(f"{folder}:dev")
    with pytest.raises(ConfigError, match=r"task.columns.text=sentense: .* did you mean sentence\?"):
        read(f"{folder}:test", {"text": "sentense"})
    (folder / "test.parquet").unlink()
    assert len(read(folder)[0]) == 3


def test_a_subset_of_a_data_set(tmp_path, monkeypatch):
    """By a name as the hub's: GLUE's `org/glue/sst2:train`, say."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = Path("org") / "name"
    for subset in ("sst2", "cola"):
        (folder / subset).mkdir(parents=True)
        rows = pa.table({"sentence": [f"{subset} {row}" for row in range(3)], "class": ["a", "b", "a"]})
        pa.parquet.write_table(rows, folder / subset / "train.parquet")
    configs = "".join(f"- config_name: {subset}\n  data_dir: {subset}\n" for subset in ("sst2", "cola"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    records, _ = read("org/name/cola:train")
    assert [record["text"] for record, _ in records] == ["cola 0", "cola 1", "cola 2"]
    with pytest.raises(ConfigError, match=r"org/name: cannot be read as a data set \(a subset is named as org/n"):
        read("org/name:train")
    with pytest.raises(ConfigError, match=r"org/name/rte: cannot be read as a data set .*rte"):
        read("org/name/rte:train")
    with pytest.raises(ConfigError, match=r"other/name/rte/x:train: no such file"):
        read("other/name/rte/x:train")


def write(folder: Path, form: str, columns: list[str]) -> Path:
    file = folder / f"a.{form}"
    if form == "parquet":
        pa.parquet.write_table(pa.table({name: ["x"] for name in columns}), file)
    elif form == "jsonl":
        file.write_text(json.dumps(dict.fromkeys(columns, "x")))
    else:
        separator = {"csv": ",", "tsv": "\t"}[form]
        file.write_text(f"{separator.join(columns)}\n{separator.join('x' * len(columns))}\n")
    return file


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_missing_column_is_refused_by_name(tmp_path, form):
    file = write(tmp_path, form, ["id", "sentence", "label"])
    with pytest.raises(ConfigError) as refusal:
        read(file, {"text": "sentence", "label": "lable"})
    told = f"task.columns.label=lable: {file} has no such column; did you mean label?; its columns are 'id', 'sentence'"
    assert str(refusal.value).startswith(told)


def test_two_columns_of_one_name_and_a_file_without_any(tmp_path):
    file = write(tmp_path, "csv", ["sentence", "class", "class"])
    with pytest.raises(ConfigError, match="has 2 columns of this name"):
        read(file)
    file.write_text("")
    with pytest.raises(ConfigError, match="its columns are none"):
        read(file)


@pytest.mark.parametrize(
    "source", ["missing/train.csv", "train.csv", "data/train.jsonl.gz", "a b", "/nowhere/a.xml", "a.en"]
)
def test_a_missing_file(source):
    """The last of them could be on the hub, which is not asked."""
    with pytest.raises(ConfigError, match=f"{source}: no such file; name a file of .csv, .tsv, .*org/name:split"):
        read(source)


def test_a_file_of_another_format(tmp_path):
    file = tmp_path / "a.xlsx"
    file.write_bytes(b"PK")
    with pytest.raises(ConfigError, match="not of a format that is read"):
        read(file)


def test_a_damaged_parquet_file(tmp_path):
    file = write(tmp_path, "parquet", ["sentence", "class"])
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=f"{file}: not a readable Parquet file"):
        read(file)


def test_bad_rows_of_csv_are_counted_and_those_after_them_read(tmp_path):
    file = tmp_path / "a.csv"
    rows = [b"sentence,class,rest", b"a,0,", b"b,1", b"c,0,,", b'd "quoted"",1,', b'"e" f,1,', b"\xff,1,", b"g,0,\xff"]
    file.write_bytes(b"\n".join([*rows, b'"open,0,', b"swallowed,0,"]))
    records, found = read(file)
    assert [row["text"] for row, _ in records] == ["a", 'd "quoted""', "g"]
    assert found.counts == {"bad quotes": 3, "not UTF-8": 1, "too few or too many cells": 2}
    with pytest.raises(
        DataError, match=f"{file}:6: .*{file}:9: .*{file}:7: column 'sentence'.*{file}:3: 2, expected 3"
    ):
        found.settle(3)


def test_a_quote_that_is_never_closed_is_as_many_bad_records_as_it_takes_lines(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("\n".join(["sentence,class", *["good,1"] * 20, '"open,0', *["good,1"] * 9]))
    found = BadRecords(str(file), allowed=0.3)
    assert len([*read_records(str(file), COLUMNS, found)]) == 20
    assert found.counts == {"bad quotes": 10}
    with pytest.raises(DataError, match=f"10 of 30 records are bad.*{file}:22: unexpected end"):
        found.settle(20)


def test_a_record_of_very_many_lines_is_told(tmp_path, caplog):
    file = tmp_path / "a.csv"
    for between, told in ((48, False), (49, True)):
        file.write_text("\n".join(["sentence,class", "good,1", '"one,1', *["good,1"] * between, 'end",1', "good,0"]))
        caplog.clear()
        assert len(values(file)) == 3
        assert (f"{file}:3: a record of {between + 2} lines; " in caplog.text) is told


def test_two_roles_of_one_column(tmp_path):
    file = write(tmp_path, "csv", ["sentence", "class"])
    with pytest.raises(ConfigError, match=r"task.columns.\w+=sentence: task.columns.\w+ is the same column"):
        read(file, {"text": "sentence", "label": "sentence"})


def test_bad_lines_of_json_are_counted_and_those_after_them_read(tmp_path):
    file = tmp_path / "a.jsonl"
    good = b'{"sentence": "a", "class": 0}'
    bad = [
        b'{"sentence": "a", "class": ',
        b'["a", 0]',
        b'{"sentence": "a"}',
        b'{"sentence": "\\ud83d", "class": 0}',  # half of a surrogate pair
        b'{"sentence": "\xe9t\xe9", "class": 0}',
        b'{"sentence": "a", "class": ["a", {"\\udc00": 0}]}',
        b"[" * 100_000,
    ]
    file.write_bytes(b"\n".join([*bad, good]))
    records, found = read(file)
    assert records == [({"text": "a", "label": 0}, f"{file}:8")]
    no_object = "no JSON object (one a line, no list around them)"
    assert found.counts == {"a column is missing": 1, no_object: 1, "not JSON": 2, "not UTF-8": 3}


def test_parquet_strings_that_are_not_utf8(tmp_path):
    file = tmp_path / "a.parquet"
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"]).buffers())
    pa.parquet.write_table(pa.table({"sentence": texts, "class": [0, 1]}), file)
    records, found = read(file)
    assert [row["text"] for row, _ in records] == ["ok"]
    assert found.counts == {"not UTF-8": 1}


@pytest.mark.shared_data
@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data")
def test_released_data_sets():
    data = Path(os.environ["HEADWATER_DATA"])
    glue = values(data / "sst2" / "dev.tsv", {"text": "sentence", "label": "label"})
    assert len(glue) == 872 and {label for _, label in glue} == {"0", "1"}
    assert len(values(data / "sst2" / "train.tsv", {"text": "sentence", "label": "label"})) == 67_349
    news = values(data / "ag_news" / "test.csv", {"label": "class"}, header=["class", "title", "description"])
    assert [news.count((label,)) for label in "1234"] == [1900] * 4
    table = pa.csv.read_csv(
        data / "ag_news" / "test.csv", read_options=pa.csv.ReadOptions(column_names=["class", "title", "description"])
    )
    texts = values(data / "ag_news" / "test.csv", {"text": "description"}, header=["class", "title", "description"])
    assert [text for (text,) in texts] == table["description"].to_pylist()
    assert len(values(data / "ag_news" / "alps_dev.tsv", {"text": "text"}, header=["text", "label"])) == 10_001
