"""Labelled records from files and from the hub: values by their roles, and the place of each record.

Holds which columns are read and the formats that only fine-tuning has, CSV and TSV; the other readers are in
`pretrain.data.sources.readers`, and what the values mean is up to the tasks. No type is guessed: a cell of CSV or TSV
is a string, and values of other formats have the types that they are stored with.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.data.sources.compression import BLOCK
from pretrain.data.sources.content import Check, check_content, unlike_json_lines
from pretrain.data.sources.documents import DOCUMENT_LIMIT
from pretrain.data.sources.parquet import column_names, open_parquet, parquet_batches
from pretrain.data.sources.readers import JSON_LINES, file_format, json_object, load_data_set, open_bytes, value_at
from pretrain.errors import ConfigError
from pretrain.hub.download import is_hub_name
from pretrain.registry import nearest

STANDARD_INPUT = "-"  # in place of a file's name
MANY_LINES = 50  # a record of a CSV with more of them is logged
FORMATS = (".csv", ".tsv", *JSON_LINES, ".parquet")

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """What was read of one record."""

    values: dict[str, Any]  # by role
    place: str  # "file:line", with the line where it begins, or "name, row 7", counted from 0


Row = tuple[str, dict[str, Any]]  # place, values by column


def read_records(
    source: str, columns: Mapping[str, str], bad: BadRecords, *, header: Sequence[str] = ()
) -> Iterator[Record]:
    """Yield the records of a file, or of a data set `org/name[/subset][@revision][:split]`, with values of `columns`.

    `columns` maps roles to different columns, all of which must exist. `header` names the columns of a CSV or TSV file
    without a header line. Cells of a CSV may be quoted (RFC 4180), those of a TSV never are, as in GLUE. CSV, TSV and
    JSON lines may be compressed. Blank lines are skipped. `-` is JSON lines from standard input,
    which can be read once.

    Records that cannot be read are reported to `bad`; the caller settles it. Raises `ConfigError` for a file, column or
    split that does not exist, and `DataError` for a file that cannot be read.
    """
    for role, column in columns.items():
        if other := next((other for other in columns if other != role and columns[other] == column), None):
            raise ConfigError(f"task.columns.{role}={column}: task.columns.{other} is the same column; name another")
    for place, row in _rows(source, columns, bad, header):
        values = {role: row[column] for role, column in columns.items()}
        if wrong := next((role for role, value in values.items() if not is_text(value)), None):
            bad.report("not UTF-8", place, f"column {columns[wrong]!r} is {values[wrong]!a:.80}")
        else:
            yield Record(values, place)


def _rows(source: str, columns: Mapping[str, str], bad: BadRecords, header: Sequence[str]) -> Iterator[Row]:
    form = file_format(source)
    name, _, split = source.partition(":")
    if source == STANDARD_INPUT:
        return _json_lines(source, columns, bad)
    if Path(source).is_file() and form in FORMATS:
        if form == ".parquet":
            return _parquet(source, columns, bad)
        if form in JSON_LINES:
            return _json_lines(source, columns, bad)
        return _table(source, columns, bad, header, quoted=form == ".csv")
    repository, _, _ = _data_set(name)
    if Path(repository).is_dir() or (form not in FORMATS and is_hub_name(repository)):
        return _hub(name, columns, split)
    what = "not of a format that is read" if Path(source).is_file() else "no such file"
    fix = f"name a file of {', '.join(FORMATS)}, or, as org/name:split, a data set on the hub"
    raise ConfigError(f"{source}: {what}; {fix}")


def _table(
    file: str, columns: Mapping[str, str], bad: BadRecords, header: Sequence[str], *, quoted: bool
) -> Iterator[Row]:
    names = list(header)
    with _open_text(file, newline="" if quoted else "\n") as text:  # "": `csv` wants line ends as they are
        lines = _quoted(file, text) if quoted else _tabbed(text)
        for line, cells in lines:
            place = f"{file}:{line}"
            if isinstance(cells, csv.Error):
                bad.report("bad quotes", place, str(cells))
            elif cells == header:
                rule = "the file's own first line names the columns; leave task.header out"
                raise ConfigError(f"task.header={','.join(header)}: {place}: {rule}")
            elif not names:
                names = cells
                _check_columns(file, columns, names, "; if its first line holds no names, set task.header")
            elif len(cells) != len(names):
                bad.report("too few or too many cells", place, f"{len(cells)}, expected {len(names)}")
            else:
                yield place, dict(zip(names, cells, strict=True))
    _check_columns(file, columns, names)


def _quoted(file: str, text: TextIO) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield each row of a CSV with the line where it begins; where quotes are wrong, an error for each of its lines.

    A quote that is never closed swallows all lines after it: each of them counts as a bad record. Two stray quotes make
    one good record of everything between them, so a record of very many lines is logged.
    """
    csv.field_size_limit(DOCUMENT_LIMIT)  # of the process; its own limit is shorter than some documents
    reader = csv.reader(text, strict=True)
    most, where = MANY_LINES, 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield from ((wrong, error) for wrong in range(line, reader.line_num + 1))
            continue
        if reader.line_num - line >= most:
            most, where = reader.line_num - line + 1, line
        if cells:
            yield line, cells
    if where:
        log.warning("%s:%d: a record of %d lines; if it should be shorter, look for a stray quote", file, where, most)


def _tabbed(text: TextIO) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(text, 1):
        if row := row.removesuffix("\n").removesuffix("\r"):
            yield line, row.split("\t")


def _json_lines(file: str, columns: Mapping[str, str], bad: BadRecords) -> Iterator[Row]:
    lacking: dict[str, Any] = {}  # the first object without one of the columns
    num_good = 0
    with _open_text(file, "\n", unlike_json_lines) as text:
        for line, data in enumerate(text, 1):
            if data.isspace():
                continue
            place = f"{file}:{line}"
            with bad.counted(place):
                fields = json_object(data)
                try:
                    row = {column: value_at(fields, column) for column in columns.values()}
                except KeyError as missing:
                    lacking = lacking or fields
                    raise BadRecordError("a column is missing", f"no {missing}, there are {sorted(fields)}") from None
                num_good += 1
                yield place, row
    if lacking and not num_good:  # the setting is wrong, not the records
        _check_columns(file, columns, list(lacking))


def _parquet(file: str, columns: Mapping[str, str], bad: BadRecords) -> Iterator[Row]:
    wanted = sorted(set(columns.values()))
    with open_parquet(file) as table:
        _check_columns(file, columns, column_names(table.schema_arrow))
        for first, batch in parquet_batches(table, wanted):
            cells = [batch.column(name) for name in wanted]
            for index in range(batch.num_rows):
                place = f"{file}, row {first + index}"
                try:
                    yield place, {name: cell[index].as_py() for name, cell in zip(wanted, cells, strict=True)}
                except UnicodeDecodeError as error:
                    bad.report("not UTF-8", place, str(error))


def _data_set(name: str) -> tuple[str, str, str]:
    """Split the name of a data set into repository or directory, subset and revision, empty where there is none."""
    repository, _, revision = name.partition("@")
    parent, _, last = repository.rpartition("/")
    if parent.count("/") == 1 and not Path(repository).is_dir():
        return parent, last, revision
    return repository, "", revision


def _hub(name: str, columns: Mapping[str, str], split: str) -> Iterator[Row]:
    from datasets import Dataset

    repository, subset, revision = _data_set(name)
    options = {"split": split or None, "revision": revision or None}
    hint = " (a subset is named as org/name/subset)"
    found = load_data_set(name, repository, subset or None, hint=hint, **options)
    if not isinstance(found, Dataset):
        splits = list(found)
        if len(splits) > 1:
            raise ConfigError(f"{name}: choose a split: {', '.join(f'{name}:{split}' for split in splits)}")
        found = found[splits[0]]
    if not set(columns.values()) <= set(found.column_names):
        found = found.flatten()  # fields of structs become columns, by their names joined with dots
    _check_columns(name, columns, found.column_names)
    for row, values in enumerate(found.select_columns(sorted(set(columns.values())))):
        yield f"{name}, row {row}", dict(values)


@contextmanager
def _open_text(file: str, newline: str, *checks: Check) -> Iterator[TextIO]:
    """Open UTF-8 text, with or without a byte order mark. Invalid bytes become surrogates, which `is_text` refuses."""
    with _standard_input(*checks) if file == STANDARD_INPUT else open_bytes(file, *checks) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        try:
            yield text
        finally:
            text.detach()  # otherwise the wrapper would close standard input


@contextmanager
def _standard_input(*checks: Check) -> Iterator[BinaryIO]:
    """Give standard input, which is not decompressed. Raises `ForeignFile` as `open_bytes` does."""
    stream = cast(io.BufferedReader, sys.stdin.buffer)
    check_content("standard input", stream.peek(BLOCK), *checks)  # what has arrived of it
    yield stream


def _check_columns(source: str, columns: Mapping[str, str], known: Sequence[str], hint: str = "") -> None:
    for role, column in columns.items():
        if (count := list(known).count(column)) != 1:
            what = f"has {count} columns of this name" if count else f"has no such column{nearest(column, known)}"
            there = ", ".join(f"{name!r:.40}" for name in known) or "none"
            raise ConfigError(f"task.columns.{role}={column}: {source} {what}; its columns are {there}{hint}")


def is_text(value: Any) -> bool:
    """Return whether all strings in a value are valid text: JSON can escape half a surrogate pair, which is not."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True
