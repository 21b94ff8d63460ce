"""Labelled records from files, from the hub and from memory: values by their roles, and the place of each record.

Holds which columns are read; CSV and TSV are in `tables`, names of classes in `classes`, the other readers in
`pretrain.data.sources.readers`, and what the values mean is up to the tasks. No type is guessed: a cell of CSV or TSV
is a string, and values of other formats have the types that they are stored with.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from finetune.data.classes import NO_CLASSES, Classes, class_name, feature_classes, parquet_classes
from finetune.data.tables import USUAL, Delimiter, find_dialect
from finetune.options import STANDARD_INPUT
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.data.sources.compression import BLOCK
from pretrain.data.sources.content import Check, check_content, unlike_json_lines
from pretrain.data.sources.locations import is_file, other_spelling
from pretrain.data.sources.parquet import column_names, open_parquet, parquet_batches
from pretrain.data.sources.readers import JSON_LINES, file_format, json_object, load_data_set, open_bytes, value_at
from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest
from pretrain.hub.download import is_hub_name

SAMPLE = 2**20  # characters at the start of a table that show its dialect
MANY_LINES = 50  # a record of a table with more of them is logged
MAX_COLUMNS = 20  # columns of a source that a message lists
FORMATS = (".csv", ".tsv", *JSON_LINES, ".parquet")

log = logging.getLogger(__name__)


DataSet = str | Sequence[Any]
"""The name of a file or of a data set on the hub, or a list of records, as `read_records` takes them."""


class Record(NamedTuple):
    """What was read of one record."""

    values: dict[str, Any]  # by role
    place: str  # "file:line", with the line where it begins; "name, row 7" or "record 7", counted from 0
    classes: Classes = NO_CLASSES  # of the roles whose classes the source itself names


class Columns(NamedTuple):
    """The columns that are read, by role."""

    required: Mapping[str, str]
    optional: Mapping[str, str]  # None stands for the value where there is none

    @property
    def roles(self) -> dict[str, str]:
        """All columns."""
        return {**self.required, **self.optional}

    def among(self, known: Iterable[str]) -> list[str]:
        """Return the known names that are read, in order."""
        return sorted({*self.roles.values()} & {*known})


class Row(NamedTuple):
    """A record as its source has it."""

    place: str
    values: dict[str, Any]  # by column
    classes: Classes = NO_CLASSES  # of the columns whose values are numbers of classes


def name_of(source: DataSet) -> str:
    """Return what messages call a data set."""
    return source if isinstance(source, str) else "the list given"


def read_records(
    source: DataSet,
    columns: Mapping[str, str],
    bad: BadRecords,
    *,
    optional: Mapping[str, str] | None = None,
    header: Sequence[str] = (),
    delimiter: Delimiter = Delimiter.auto,
) -> Iterator[Record]:
    """Yield the records of a file, a data set `org/name[/subset][@revision][:split]` or a list: values of `columns`.

    `columns` maps roles to different columns, all of which must exist; `optional` maps more roles to columns that may
    be missing, whose values are not checked. `header` names the columns of a CSV or TSV file without a header line;
    `find_dialect` says how their cells are told apart. All but Parquet may be compressed. Blank lines are skipped. `-`
    is JSON lines from standard input, which can be read once. In a list a record is a dictionary by column, a tuple of
    the columns' values, or the value of the first one alone. Numbers of classes that the source itself names are
    replaced by the names.

    Records that cannot be read are reported to `bad`; the caller settles it. Raises `ConfigError` for a file, column or
    split that does not exist, and `DataError` for a file that cannot be read.
    """
    wanted = Columns(columns, optional or {})
    roles = wanted.roles
    for role, column in roles.items():
        if other := next((other for other in roles if other != role and roles[other] == column), None):
            raise ConfigError(f"task.columns.{role}={column}: task.columns.{other} is the same column; name another")
    for place, row, classes in _rows(source, wanted, bad, header, delimiter):
        with bad.counted(place):
            named = {name: class_name(row[name], names) for name, names in classes.items() if name in row}
            values = {role: named.get(column, row.get(column)) for role, column in roles.items()}
            if wrong := next((role for role in columns if not is_text(values[role])), None):
                raise BadRecordError("not UTF-8", f"column {columns[wrong]!r} is {values[wrong]!a:.80}")
            yield Record(values, place, {role: classes[name] for role, name in roles.items() if name in classes})


def _rows(
    source: DataSet, columns: Columns, bad: BadRecords, header: Sequence[str], delimiter: Delimiter
) -> Iterator[Row]:
    if not isinstance(source, str):
        given = ((f"record {number}", value) for number, value in enumerate(source))
        return _objects(name_of(source), given, lambda value: _fields(value, columns), columns, bad)
    form = file_format(source)
    name, _, split = (source, "", "") if Path(source).is_dir() else source.partition(":")
    if source == STANDARD_INPUT:
        return _json_lines(source, columns, bad, lambda line: _object_typed(line, columns))
    if is_file(source) and form in FORMATS:
        if form == ".parquet":
            return _parquet(source, columns, bad)
        if form in JSON_LINES:
            return _json_lines(source, columns, bad)
        return _table(source, columns, bad, header, delimiter)
    repository, _, _ = _data_set(name)
    if Path(repository).is_dir() or (form not in FORMATS and not _is_file_name(source) and is_hub_name(repository)):
        return _hub(name, columns, split)
    what = "not of a format that is read" if is_file(source) else f"no such file{other_spelling(source)}"
    fix = f"name a file of {', '.join(FORMATS)}, or, as org/name:split, a data set on the hub"
    raise ConfigError(f"{source}: {what}; {fix}")


def _table(file: str, columns: Columns, bad: BadRecords, header: Sequence[str], delimiter: Delimiter) -> Iterator[Row]:
    usual, names = USUAL[file_format(file)], list(header)
    longest = (0, "")  # record in lines, and its place
    with _open_text(file, newline="") as text:
        sample = text.read(SAMPLE)
    wanted = [*columns.required.values()]
    dialect = find_dialect(file, sample, usual=usual, delimiter=delimiter, wanted=wanted, header=header)
    if dialect != usual:
        log.info("%s is read with %s", file, dialect)
    with _open_text(file, newline=dialect.newline) as text:
        for line, cells in dialect.rows(text):
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
                yield Row(place, dict(zip(names, cells, strict=True)))
                longest = max(longest, (sum(cell.count("\n") for cell in cells) + 1, place))
    _check_columns(file, columns, names)
    if longest[0] > MANY_LINES:
        log.warning("%s: a record of %d lines; if it should be shorter, look for a stray quote", *reversed(longest))


def _json_lines(
    file: str, columns: Columns, bad: BadRecords, fields_of: Callable[[str], dict[str, Any]] = json_object
) -> Iterator[Row]:
    with _open_text(file, "\n", unlike_json_lines) as text:
        lines = ((f"{file}:{line}", data) for line, data in enumerate(text, 1) if not data.isspace())
        yield from _objects(file, lines, fields_of, columns, bad)


def _object_typed(line: str, columns: Columns) -> dict[str, Any]:
    """Return the object on a line of standard input. The refusal of anything else shows what a line has to be."""
    try:
        return json_object(line)
    except BadRecordError as wrong:
        example = ", ".join(f'"{column}": ...' for column in columns.required.values())
        reason = f"{wrong.reason}, but standard input has to be lines like {{{example}}}"
        raise BadRecordError(reason, str(wrong)) from None


def _objects(
    name: str,
    given: Iterable[tuple[str, Any]],
    fields_of: Callable[[Any], dict[str, Any]],
    columns: Columns,
    bad: BadRecords,
) -> Iterator[Row]:
    """Yield the rows of records that each have fields of their own, which `fields_of` makes of what is at a place."""
    lacking: dict[str, Any] = {}  # the first record without one of the columns
    num_good = 0
    for place, data in given:
        with bad.counted(place):
            fields = fields_of(data)
            try:
                row = {column: value_at(fields, column) for column in columns.required.values()}
            except KeyError as missing:
                lacking = lacking or fields
                raise BadRecordError("a column is missing", f"no {missing}, there are {sorted(fields)}") from None
            for column in columns.optional.values():
                with suppress(KeyError):
                    row[column] = value_at(fields, column)
            num_good += 1
            yield Row(place, row)
    if lacking and not num_good:  # the setting is wrong, not the records
        _check_columns(name, columns, list(lacking))


def _fields(value: Any, columns: Columns) -> dict[str, Any]:
    """Return a record in memory as a dictionary by column."""
    if isinstance(value, Mapping):
        return {str(column): cell for column, cell in value.items()}
    values, names = value if isinstance(value, tuple) else (value,), columns.roles.values()
    if len(values) > len(names):
        raise BadRecordError("too many values", f"{len(values)}, expected {', '.join(names)}")
    return dict(zip(names, values, strict=False))


def _parquet(file: str, columns: Columns, bad: BadRecords) -> Iterator[Row]:
    with open_parquet(file) as table:
        known = column_names(table.schema_arrow)
        _check_columns(file, columns, known)
        wanted = columns.among(known)
        classes = parquet_classes(file, table.schema_arrow)
        for first, batch in parquet_batches(table, wanted):
            cells = [batch.column(name) for name in wanted]
            for index in range(batch.num_rows):
                place = f"{file}, row {first + index}"
                try:
                    values = {name: _decoded(cell[index].as_py()) for name, cell in zip(wanted, cells, strict=True)}
                    yield Row(place, values, classes)
                except UnicodeDecodeError as error:
                    bad.report("not UTF-8", place, str(error))


def _decoded(value: Any) -> Any:
    """Return a value in which texts that are stored as bytes, also in lists, are texts."""
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def _is_file_name(source: str) -> bool:
    """Return whether a name is more likely that of a file, such as `test.en`, than of a data set on the hub.

    Old data sets, `squad` say, have no organisation. One with a dot in its name is asked for with its split.
    """
    return "." in source and not {"/", ":", "@"} & {*source}


def _data_set(name: str) -> tuple[str, str, str]:
    """Split the name of a data set into repository or directory, subset and revision, empty where there is none."""
    repository, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    parent, _, last = repository.rpartition("/")
    if parent.count("/") == 1 and not Path(repository).is_dir():
        return parent, last, revision
    return repository, "", revision


def _hub(name: str, columns: Columns, split: str) -> Iterator[Row]:
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
    if not set(columns.required.values()) <= set(found.column_names):
        found = found.flatten()  # fields of structs become columns, by their names joined with dots
    _check_columns(name, columns, found.column_names)
    features: Any = found.features.to_dict()
    classes = feature_classes(features)
    for row, values in enumerate(found.select_columns(columns.among(found.column_names))):
        yield Row(f"{name}, row {row}", dict(values), classes)


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


def _check_columns(source: str, columns: Columns, known: Sequence[str], hint: str = "") -> None:
    for role, column in columns.required.items():
        if (count := list(known).count(column)) != 1:
            what = f"has {count} columns of this name" if count else f"has no such column{_alike(column, known)}"
            there = ", ".join(f"{name!r:.40}" for name in known[:MAX_COLUMNS]) or "none"
            there += f", ... ({len(known):,} in all)" * (len(known) > MAX_COLUMNS)
            raise ConfigError(f"{_setting(role, column)}: {source} {what}; its columns are {there}{hint}")


def _setting(role: str, column: str) -> str:
    """Return what the user typed to name a column: a prompt's template has it in braces."""
    return f"task.template={role}" if role.startswith("{") else f"task.columns.{role}={column}"


def _alike(column: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" with the column that differs in case and space alone, or is spelt most like this."""
    plain = column.strip().casefold()
    same = next((name for name in known if name.strip().casefold() == plain), None)
    return nearest(column, known) if same is None else f"; did you mean {same!r}?"


def is_text(value: Any) -> bool:
    """Return whether all strings in a value are valid text: JSON can escape half a surrogate pair, which is not."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True
