"""Dialects of CSV and TSV: what other programs write is read as they meant it, and what cannot be told is refused."""

import csv
import io
import itertools
import logging
import re

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.records import read_records
from finetune.data.tables import Delimiter
from pretrain.data.sources.bad_records import BadRecords
from pretrain.errors import ConfigError

COLUMNS = {"text": "text", "label": "label"}
SIGNS = [",", ";", "\t", "|"]
ROWS = [
    ("plain", "0"),
    ("commas, and; others| in one", "1"),
    ("a\ttab", "0"),
    ('she said "no"', "1"),
    ('"quoted from end to end"', "0"),
    ("two\nlines", "1"),
    (r"C:\new and \"this\"", "0"),
    (" spaces ", "1"),
    ("naïve 文字 🙂", "0,5"),
    ("", "1"),
]


def read(file, columns=COLUMNS, **options):
    found = BadRecords(str(file))
    records = [*read_records(str(file), columns, found, **options)]
    return [tuple(record.values[role] for role in columns) for record in records], dict(found.counts)


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.csv"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL], ids=["some", "all"])
def test_what_pythons_csv_writes_is_read(write, form, sign, end, quoting):
    rows = [row for row in ROWS if end != "\r" or "\n" not in row[0]]  # `csv` would not quote that
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=sign, lineterminator=end, quoting=quoting).writerows(
        [("id", "text", "label"), *((str(number), *row) for number, row in enumerate(rows))]
    )
    for mark in ("", "\ufeff"):
        assert read(write(mark + text.getvalue(), f"a.{form}")) == (rows, {})


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_what_pandas_writes_with_backslashes_is_read(write, form, sign):
    rows = [*ROWS, ("a backslash at the end\\", "1")]
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    text = frame.to_csv(sep=sign, index=False, doublequote=False, escapechar="\\", quoting=csv.QUOTE_ALL)
    assert read(write(text, f"a.{form}")) == (rows, {})


def test_what_spark_writes_is_read(write):
    """It escapes quotes alone."""
    content = "\n".join(["text,label", r'"C:\new, \"x\"",1', "plain,0"])
    assert read(write(content)) == ([(r'C:\new, "x"', "1"), ("plain", "0")], {})


def test_backslashes_and_doubled_quotes_are_told_apart(write):
    rows = [("\\", "0"), ('\\"', "1"), ('a\n\\\\"b', "0"), ("c:\\", "1"), ("", "0")]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    assert read(write(text.getvalue())) == (rows, {})


def test_backslashes_alone_are_text(write):
    assert read(write('text,label\n"C:\\dir\\",1\n"a ""b""",0\n')) == ([("C:\\dir\\", "1"), ('a "b"', "0")], {})


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(*[st.text(st.sampled_from("a\",;|\t\n '0"), max_size=8)] * 2), min_size=1, max_size=6),
    sign=st.sampled_from(SIGNS),
)
def test_any_cells_survive_any_delimiter(tmp_path_factory, rows, sign):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=sign, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    file = tmp_path_factory.mktemp("any") / "a.csv"
    file.write_bytes(text.getvalue().encode())
    assert read(file) == (rows, {})


def test_a_tsv_without_quotes_keeps_them(write):
    rows = [('"open', "0"), ('"all of it"', "1"), ('in the "middle"', "0"), ('""', "1")]
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    assert read(write(content, "a.tsv")) == (rows, {})
    assert read(write('text\tlabel\n"all of it"\t1\n', "a.tsv")) == ([('"all of it"', "1")], {})


def test_a_tsv_whose_quotes_are_of_its_writing_loses_them(write):
    assert read(write('text\tlabel\na\t0\n"say ""b"""\t1\n', "a.tsv")) == ([("a", "0"), ('say "b"', "1")], {})
    assert read(write('text\tlabel\n"a\tb"\t1\n', "a.tsv")) == ([("a\tb", "1")], {})
    for rest in ("", '"c'):  # the last line may be cut
        content = f'"a"\t0\n"b"\t1\n{rest}'
        assert read(write(content, "a.tsv"), header=["text", "label"])[0] == [("a", "0"), ("b", "1")]


def test_a_tsv_with_line_ends_of_old_macs(write):
    assert read(write("text\tlabel\ra, b\t0\rc\t1\r", "a.tsv")) == ([("a, b", "0"), ("c", "1")], {})


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\ufeffsep=;"])
def test_excels_first_line(write, first, caplog):
    caplog.set_level(logging.INFO)
    file = write(f"{first}\r\ntext;label\r\na, b;0,5\r\n")
    assert read(file) == ([("a, b", "0,5")], {})
    [record] = read_records(str(file), COLUMNS, BadRecords())
    assert record.place == f"{file}:3"
    assert f"{file} is read with semicolon between cells, quotes around them" in caplog.text
    assert read(write("sep=;\na;0\n"), header=["text", "label"]) == ([("a", "0")], {})
    with pytest.raises(ConfigError, match=r"a.csv:1: sep=':': is none of ',' ';' '\\t' '\|'"):
        read(write("sep=:\ntext:label\n"))


def test_the_usual_dialect_is_not_told(write, caplog):
    caplog.set_level(logging.INFO)
    read(write('text,label\n"a; b",0\n'))
    read(write("text\tlabel\na\t0\n", "a.tsv"))
    assert not caplog.records


def test_spaces_after_commas(write):
    assert read(write('id, text, label\n1, "a, b", x\n2, c, y\n')) == ([("a, b", "x"), ("c", "y")], {})
    assert read(write("text, label\n a,0\n"), {"text": "text"}) == ([(" a",)], {}), "the header has it so"


def test_one_column_has_the_usual_delimiter(write):
    assert read(write("text\na|b\nc; d\n"), {"text": "text"}) == ([("a|b",), ("c; d",)], {})
    found = read(write("text\na, b\n"), {"text": "text"})
    assert found == ([], {"too few or too many cells": 1})


def test_columns_without_a_header_show_the_delimiter_by_their_number(write, caplog):
    caplog.set_level(logging.INFO)
    header = ["label", "text"]
    assert read(write("1;a, b\n2;c\n"), header=header) == ([("a, b", "1"), ("c", "2")], {})
    assert "semicolon between cells" in caplog.text
    file = write("1;a, b\n2;c, d\n")
    rule = "as many rows of .*a.csv have 2 cells with comma between them as with semicolon; set the one that is right"
    with pytest.raises(ConfigError, match=rf"^task.delimiter=auto: {rule}"):
        read(file, header=header)
    assert read(file, header=header, delimiter=Delimiter.semicolon)[0] == [("a, b", "1"), ("c, d", "2")]
    assert read(file, header=header, delimiter=Delimiter.comma)[0] == [(" b", "1;a"), (" d", "2;c")]


def test_a_delimiter_that_is_set_is_not_guessed(write):
    with pytest.raises(ConfigError, match=r"task.columns.text=text: .*; its columns are 'text,label'"):
        read(write("text,label\na,0\n"), delimiter=Delimiter.pipe)


def test_ragged_rows_are_bad_records_in_every_dialect(write):
    for sign in SIGNS:
        content = f"id{sign}text{sign}label\n1{sign}a{sign}0\n2{sign}b\n3{sign}c{sign}1{sign}\n\n4{sign}d{sign}0"
        assert read(write(content)) == ([("a", "0"), ("d", "0")], {"too few or too many cells": 2})


@pytest.mark.parametrize("name", ["Text", "TEXT", "text ", "texts"])
@pytest.mark.parametrize("sign", SIGNS)
def test_columns_of_nearly_the_right_name_are_named(write, name, sign):
    told = rf"task.columns.text=text: .*a.csv has no such column; did you mean '?{name}'?\?; its columns are "
    there = re.escape(f"{name!r}, 'label'")
    with pytest.raises(ConfigError, match=told + there):
        read(write(f"{name}{sign}label\na{sign}0\n"))


def test_a_table_of_very_many_columns(write):
    names = [f"column{number}" for number in range(1000)]
    content = ";".join([*names, "text", "label"]) + "\n" + "0;" * 1000 + "a;b\n"
    assert read(write(content)) == ([("a", "b")], {})
    with pytest.raises(ConfigError, match=r"did you mean text\?; its columns are 'column0', .*'column19', \.\.\. \(1"):
        read(write(content), {"text": "txt"})


def test_duplicate_columns_matter_only_where_they_are_wanted(write):
    assert read(write("text;x;x;label\na;1;2;b\n")) == ([("a", "b")], {})
    with pytest.raises(ConfigError, match="has 2 columns of this name"):
        read(write("text;label;label\na;1;2\n"))


def test_evidence_is_taken_from_the_beginning_of_a_large_file(write):
    rows = [(f"text; {number}", str(number)) for number in range(50_000)]
    lines = itertools.chain(["text|label"], map("|".join, rows))
    assert read(write("\n".join(lines))) == (rows, {})
