"""Parquet: every layout of strings, fields within structs, and files that are something else."""

import gzip

import pyarrow as pa
import pytest
from pyarrow import parquet
from reading import read

from finetune.data.records import read_records
from pretrain.data.sources.bad_records import BadRecords, OnInvalid
from pretrain.data.sources.structured import ParquetSource
from pretrain.errors import DataError

STRINGS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
STRINGS += [pa.dictionary(pa.int8(), pa.large_binary()), pa.json_()]
VIEWS = [pa.string_view(), pa.binary_view()]  # which Arrow does not write in several row groups


def strings(texts: list[str], kind: pa.DataType) -> pa.Array:
    """An array of a type, by way of types that Arrow can cast."""
    if kind == pa.json_():
        return pa.ExtensionArray.from_storage(kind, pa.array(texts))
    if pa.types.is_dictionary(kind):
        return pa.array(texts).cast(kind.value_type).dictionary_encode().cast(kind)
    return pa.array(texts).cast(kind)


@pytest.mark.parametrize("kind", STRINGS + VIEWS, ids=str)
def test_every_layout_of_strings(tmp_path, kind):
    texts = [f"row {number % 90} é" for number in range(1000)]
    column = strings(texts, kind)
    table = pa.table({"id": range(1000), "text": column, "meta": pa.StructArray.from_arrays([column], ["text"])})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=None if kind in VIEWS else 70)
    parquet.write_table(table.slice(0, 3) if kind not in VIEWS else table, tmp_path / "b.parquet")
    expected = texts + (texts if kind in VIEWS else texts[:3])
    for field in ("text", "meta.text"):
        source = ParquetSource(paths=[f"{tmp_path}/*.parquet"], field=field)
        assert len(source.units(source.inputs(), 1)) == (2 if kind in VIEWS else 16)
        for unit_bytes in (1, 3000, 2**20):
            assert read(source, unit_bytes) == (expected, {})


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


def test_strings_of_one_length_in_bytes(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([b"ab", "é".encode()], pa.binary(2))}), tmp_path / "a.parquet")
    assert read(ParquetSource(paths=[f"{tmp_path}/a.parquet"]))[0] == ["ab", "é"]


def test_a_field_within_structs_and_a_column_of_its_name(tmp_path):
    rows = [{"inner": {"text": f"deep {row}", "a.b": f"dotted {row}"}, "text": None} for row in range(700)]
    rows[3] = None
    table = pa.table({"meta": rows, "n": range(700)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    source = ParquetSource(paths=[f"{tmp_path}/a.parquet"], field="meta.inner.text")
    expected = [f"deep {row}" for row in range(700) if row != 3]
    assert read(source) == (expected, {"missing_field": 1})
    source.field = "meta.inner.a.b"
    assert read(source)[0] == [text.replace("deep", "dotted") for text in expected]
    own = table.append_column("meta.inner.text", pa.array(["own"] * 700))
    parquet.write_table(own, tmp_path / "a.parquet")
    source.field = "meta.inner.text"
    assert read(source) == (["own"] * 700, {})
    source.field = "meta.text.x"
    with pytest.raises(DataError, match=r"no column 'meta.text.x'; .*'meta', 'meta.inner', 'meta.inner.a.b'"):
        read(source)


def test_fine_tuning_reads_fields_within_structs_over_row_groups(tmp_path):
    words = pa.array(["a", "b", "a"] * 30).dictionary_encode()
    table = pa.table({"meta": pa.StructArray.from_arrays([words], ["text"]), "label": range(90)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    bad = BadRecords()
    records = read_records(str(tmp_path / "a.parquet"), {"text": "meta.text", "label": "label"}, bad)
    assert [record.values["text"] for record in records] == ["a", "b", "a"] * 30 and not bad.counts


WRONG_TYPES = {
    "lists": pa.array([["a"], ["b"]]),
    "structs": pa.array([{"x": "a"}, {"x": "b"}]),
    "numbers": pa.array([1, 2]),
    "dictionary of numbers": pa.array([1, 2]).dictionary_encode(),
    "times": pa.array([1, 2], pa.timestamp("s")),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_columns_of_other_types_are_refused_by_name(tmp_path, kind):
    parquet.write_table(pa.table({"text": WRONG_TYPES[kind]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'text' is .*, expected strings"):
        read(ParquetSource(paths=[f"{tmp_path}/a.parquet"]))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: 2 columns 'text'"):
        read(ParquetSource(paths=[f"{tmp_path}/a.parquet"]))


NO_PARQUET = {
    b'{"text": "a"}\n' * 9: "text; choose data=jsonl",
    "text".encode("utf-16"): "text in UTF-16",
    b"PK\x03\x04 and so on": "a zip archive",
    gzip.compress(b"PAR1"): "compressed as a whole; decompress it",
}


@pytest.mark.parametrize("content", NO_PARQUET, ids=range(len(NO_PARQUET)))
def test_what_is_no_parquet_is_named(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.parquet: no Parquet file but {NO_PARQUET[content]}"):
        read(ParquetSource(paths=[str(path)]))
    with pytest.raises(DataError, match=rf"a\.parquet: no Parquet file but {NO_PARQUET[content]}"):
        [*read_records(str(path), {"text": "text"}, BadRecords())]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file \(.*0 bytes"):
        read(ParquetSource(paths=[str(path)]))
