"""Labelled records from files and from the hub: values by their roles, and where each record is.

Holds the reading; what the values mean, and which of them are good, is for tasks to say. No type is guessed: a cell of
CSV or TSV is a string, whatever is in it, and values of other formats have the types that they are stored with.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from finetune.data.bad_records import Faults
from pretrain.data.sources.documents import COMPRESSED, DOCUMENT_LIMIT, open_bytes
from pretrain.data.sources.records import PARQUET_ROWS, open_parquet
from pretrain.errors import ConfigError, HeadwaterError
from pretrain.hub.download import is_hub_name
from pretrain.registry import nearest

JSON_LINES = (".jsonl", ".ndjson", ".json")
STANDARD_INPUT = "-"  # in place of a file's name
MANY_LINES = 50  # of a record in a CSV, which is told if it has more
FORMATS = (".csv", ".tsv", *JSON_LINES, ".parquet")

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """What was read of one record."""

    values: dict[str, Any]  # by role
    place: str  # "file:line", with the line where it begins, or "name, row 7", counted from 0


Row = tuple[str, dict[str, Any]]  # place, values by column


def read_records(
    source: str, columns: Mapping[str, str], faults: Faults, *, header: Sequence[str] = ()
) -> Iterator[Record]:
    """Yield the records of a file, or of a data set `org/name[/subset][@revision][:split]`, with values of `columns`.

    `columns` maps roles to columns, all of which there must be, no two to the same one. `header` names the columns of a
    CSV or TSV file that does not do so in its first line. A CSV may quote its cells (RFC 4180), a TSV never does, as
    GLUE's do not; they and JSON lines may be compressed (.gz, .xz, .bz2, .zst). Blank lines are no records. `-` is JSON
    lines from standard input, which can be read once.

    Reports records that cannot be read to `faults`, which the caller settles. Raises `ConfigError` for what is not
    there, file, column or split, and `DataError` for a file that cannot be read.
    """
    for role, column in columns.items():
        if other := next((other for other in columns if other != role and columns[other] == column), None):
            raise ConfigError(f"task.columns.{role}={column}: task.columns.{other} is the same column; name another")
    for place, row in _rows(source, columns, faults, header):
        values = {role: row[column] for role, column in columns.items()}
        if bad := next((role for role, value in values.items() if not _is_text(value)), None):
            faults.report("not UTF-8", place, f"column {columns[bad]!r} is {values[bad]!a:.80}")
        else:
            yield Record(values, place)


def _rows(source: str, columns: Mapping[str, str], faults: Faults, header: Sequence[str]) -> Iterator[Row]:
    suffixes = [suffix for suffix in Path(source).suffixes if suffix not in COMPRESSED]
    form = suffixes[-1] if suffixes else ""
    name, _, split = source.partition(":")
    if source == STANDARD_INPUT:
        return _json_lines(source, columns, faults)
    if Path(source).is_file() and form in FORMATS:
        if form == ".parquet":
            return _parquet(source, columns, faults)
        if form in JSON_LINES:
            return _json_lines(source, columns, faults)
        return _table(source, columns, faults, header, quoted=form == ".csv")
    repository, subset, revision = _data_set(name)
    if Path(repository).is_dir() or (form not in FORMATS and is_hub_name(repository)):
        return _hub(name, load=(repository, subset, revision, split), columns=columns)
    what = "not of a format that is read" if Path(source).is_file() else "no such file"
    fix = f"name a file of {', '.join(FORMATS)}, or, as org/name:split, a data set on the hub"
    raise ConfigError(f"{source}: {what}; {fix}")


def _table(
    file: str, columns: Mapping[str, str], faults: Faults, header: Sequence[str], *, quoted: bool
) -> Iterator[Row]:
    names = list(header)
    with _open_text(file, newline="" if quoted else "\n") as text:  # "": `csv` wants line ends as they are
        lines = _quoted(file, text) if quoted else _tabbed(text)
        for line, cells in lines:
            place = f"{file}:{line}"
            if isinstance(cells, csv.Error):
                faults.report("bad quotes", place, str(cells))
            elif cells == header:
                rule = "the file's own first line names the columns; leave task.header out"
                raise ConfigError(f"task.header={','.join(header)}: {place}: {rule}")
            elif not names:
                names = cells
                _check_columns(file, columns, names, "; if its first line is none of names, set task.header")
            elif len(cells) != len(names):
                faults.report("too few or too many cells", place, f"{len(cells)}, expected {len(names)}")
            else:
                yield place, dict(zip(names, cells, strict=True))
    _check_columns(file, columns, names)


def _quoted(file: str, text: TextIO) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield each row of a CSV and the line where it begins; where quotes are wrong, an error for each of its lines.

    A quote that is never closed takes all lines after it: they are as many bad records, not one. Two stray quotes make
    one good record of all between them, so a record of very many lines is told.
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


def _json_lines(file: str, columns: Mapping[str, str], faults: Faults) -> Iterator[Row]:
    lacking, read = {}, 0
    with _open_text(file, newline="\n") as text:
        for line, data in enumerate(text, 1):
            if data.isspace():
                continue
            place = f"{file}:{line}"
            try:
                row = json.loads(data)
            except (ValueError, RecursionError) as error:
                faults.report("not JSON", place, str(error))
                continue
            if not isinstance(row, dict):
                faults.report("no JSON object (one a line, no list around them)", place, ascii(row)[:80])
            elif missing := [column for column in columns.values() if column not in row]:
                faults.report("a column is missing", place, f"no {missing[0]!r}, there are {sorted(row)}")
                lacking = lacking or row
            else:
                read += 1
                yield place, row
    if lacking and not read:  # the setting is wrong, not the records
        _check_columns(file, columns, list(lacking))


def _parquet(file: str, columns: Mapping[str, str], faults: Faults) -> Iterator[Row]:
    with open_parquet(file) as table:
        _check_columns(file, columns, table.schema_arrow.names)
        wanted = sorted(set(columns.values()))
        row = 0
        for batch in table.iter_batches(PARQUET_ROWS, columns=wanted):
            cells = [batch.column(name) for name in wanted]
            for index in range(batch.num_rows):
                place = f"{file}, row {row}"
                try:
                    yield place, {name: cell[index].as_py() for name, cell in zip(wanted, cells, strict=True)}
                except UnicodeDecodeError as error:
                    faults.report("not UTF-8", place, str(error))
                row += 1


def _data_set(name: str) -> tuple[str, str, str]:
    """Take the name of a data set apart: repository or directory, subset and revision, empty where there is none."""
    repository, _, revision = name.partition("@")
    parent, _, last = repository.rpartition("/")
    if parent.count("/") == 1 and not Path(repository).is_dir():
        return parent, last, revision
    return repository, "", revision


def _hub(name: str, load: tuple[str, str, str, str], columns: Mapping[str, str]) -> Iterator[Row]:
    from datasets import Dataset, load_dataset

    repository, subset, revision, split = load
    try:
        found = load_dataset(repository, subset or None, split=split or None, revision=revision or None)
    except HeadwaterError:  # the request to stop
        raise
    except Exception as error:  # names, connections, disks, formats: each from a library of its own
        hint = "a subset is named as org/name/subset"
        raise ConfigError(f"{name}: cannot be read as a data set ({hint}): {' '.join(str(error).split())}") from None
    if not isinstance(found, Dataset):
        splits = list(found)
        if len(splits) > 1:
            raise ConfigError(f"{name}: choose a split: {', '.join(f'{name}:{split}' for split in splits)}")
        found = found[splits[0]]
    _check_columns(name, columns, found.column_names)
    for row, values in enumerate(found.select_columns(sorted(set(columns.values())))):
        yield f"{name}, row {row}", dict(values)


@contextmanager
def _open_text(file: str, newline: str) -> Iterator[TextIO]:
    """Open UTF-8 text, perhaps after a byte order mark. Bytes that are none become surrogates, which are no text."""
    with nullcontext(sys.stdin.buffer) if file == STANDARD_INPUT else open_bytes(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        try:
            yield text
        finally:
            text.detach()  # a wrapper that is let go would close standard input


def _check_columns(source: str, columns: Mapping[str, str], known: Sequence[str], hint: str = "") -> None:
    for role, column in columns.items():
        if (count := list(known).count(column)) != 1:
            what = f"has {count} columns of this name" if count else f"has no such column{nearest(column, known)}"
            there = ", ".join(f"{name!r:.40}" for name in known) or "none"
            raise ConfigError(f"task.columns.{role}={column}: {source} {what}; its columns are {there}{hint}")


def _is_text(value: Any) -> bool:
    """Say whether all strings in a value are text: JSON can escape half a surrogate pair, which no tokenizer takes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, list):
        return all(map(_is_text, value))
    if isinstance(value, dict):
        return all(_is_text(part) for pair in value.items() for part in pair)
    return True
