"""Pairs of texts, what a model reads and what it writes: read, put into a prompt, and checked.

Conversations are in `conversations`; tokens are made in `encoding`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from finetune.data.records import FORMATS, STANDARD_INPUT, DataSet, Record, is_text, name_of, read_records
from finetune.data.tables import Delimiter
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.data.sources.locations import is_file, other_spelling, typed_name
from pretrain.data.sources.readers import file_format, open_bytes
from pretrain.errors import ConfigError, DataError, check

AND = "+"  # between the names of two files whose lines pair
SOURCE, TARGET = "source", "target"  # roles of columns


class Pair(NamedTuple):
    """A text that the model reads, with what it should write."""

    source: str  # the prompt: the template with the record's texts in it
    target: str | None  # None: not known
    place: str  # file and line


class PromptTemplate:
    """The text around a source, such as "Translate to German: {source}": columns of a record stand in braces.

    `{source}` is the column of sources, whatever its name; `{{` and `}}` are braces, `\\n` begins a line.
    """

    def __init__(self, text: str) -> None:
        """Take a template apart. Raises `ConfigError` for one that cannot be, or that names no column."""
        rule = "must name columns in braces, as in 'Translate: {source}', and have other braces twice: {{ and }}"
        try:
            parts = [*Formatter().parse(text.replace("\\n", "\n"))]
        except ValueError as error:
            raise ConfigError(f"task.template={text!r}: {rule} ({error})") from None
        plain = all(name and not spec and conversion is None for _, name, spec, conversion in parts if name is not None)
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.names = list(dict.fromkeys(name for _, name in self._parts if name is not None))  # of columns, in order
        check(bool(self.names) and plain, "task.template", repr(text), rule)

    def fill(self, texts: Mapping[str, str]) -> str:
        """Return the template with a text for each of `names`."""
        return "".join(literal + ("" if name is None else texts[name]) for literal, name in self._parts)

    def columns(self, source_column: str, target_column: str) -> dict[str, str]:
        """Return the column that each name stands for, by its role: `source`, or the name in braces.

        Raises `ConfigError` for the column of targets: the model would read what it should write.
        """
        for name in self.names:
            rule = f"task.columns.target={target_column}: the model would read what it should write; leave it out"
            check(name not in (TARGET, target_column), "task.template", f"{{{name}}}", rule)
        roles = {_role(name, source_column): name for name in self.names}
        return {role: source_column if role == SOURCE else name for role, name in roles.items()}


def read_pairs(
    source: DataSet,
    template: str,
    *,
    source_column: str,
    target_column: str,
    labelled: bool,
    max_faults: float,
    header: Sequence[str] = (),
    delimiter: Delimiter = Delimiter.auto,
) -> list[Pair]:
    """Read the pairs of a data set; if it is not `labelled`, targets are read where there are any.

    `SOURCES+TARGETS` are two files of text, perhaps compressed, line n of which belong together; without labels one
    file of text will do. All else is read by `read_records`: in memory a record is a dictionary by column, or a tuple
    of the template's columns and the target.

    Records with an empty source or target are bad ones, which are counted and left out. Raises `DataError` if their
    share is above `max_faults`, for files that have not as many lines as one another, and for one that cannot be read;
    `ConfigError` for a file or column that is not there.
    """
    prompt = PromptTemplate(template)
    columns = prompt.columns(source_column, target_column)
    optional: dict[str, str] = {}
    (columns if labelled else optional)[TARGET] = target_column
    bad = BadRecords(name_of(source), allowed=max_faults)
    texts = _text_files(source, labelled=labelled)
    if texts is None:
        records = read_records(source, columns, bad, optional=optional, header=header, delimiter=delimiter)
    else:
        others = next((role for role in columns if role not in (SOURCE, TARGET)), None)
        check(others is None, "task.template", others, f"{source}: files of text have no columns, only {{source}}")
        records = _lines(*texts)
    pairs = []
    for record in records:
        with bad.counted(record.place):
            filled = {name: _text(record.values, _role(name, source_column)) for name in prompt.names}
            if not any(text.strip() for text in filled.values()):
                raise BadRecordError("empty source", f"nothing in {', '.join(filled)}")
            target = _text(record.values, TARGET) if labelled else _given_target(record.values)
            pairs.append(Pair(prompt.fill(filled), target, record.place))
    bad.settle(len(pairs))
    return pairs


def _role(name: str, source_column: str) -> str:
    return SOURCE if name in (SOURCE, source_column) else f"{{{name}}}"


def _text(values: Mapping[str, Any], role: str) -> str:
    """Return the text of a column; only one that a template names beside the source may be empty or missing."""
    value = values[role]
    optional = role not in (SOURCE, TARGET)
    if value is None and optional:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str | None):
        raise BadRecordError("no text", f"{role} is {value!a:.80}")
    if not is_text(value):
        raise BadRecordError("not UTF-8", f"{role} is {value!a:.80}")
    if not (optional or (value or "").strip()):
        raise BadRecordError(f"empty {role}", f"{value!r:.40}")
    return value or ""


def _given_target(values: Mapping[str, Any]) -> str | None:
    """Return the target of a record that needs none; None for one that could not be a target."""
    try:
        return _text(values, TARGET)
    except BadRecordError:
        return None


def _text_files(source: DataSet, *, labelled: bool) -> list[str] | None:
    """Return the one or two files of text that a name stands for, or None for any other data set."""
    if not isinstance(source, str) or source == STANDARD_INPUT:
        return None
    if is_file(source):
        if file_format(source) in FORMATS:
            return None
        rule = f"a file of text has no targets; name theirs, too: {source}{AND}TARGETS, or one of {', '.join(FORMATS)}"
        if labelled:
            raise ConfigError(f"{source}: {rule}")
        return [source]
    if AND not in source or Path(source).is_dir():
        return None
    parts = source.split(AND)
    divisions = [(AND.join(parts[:at]), AND.join(parts[at:])) for at in range(1, len(parts))]
    named = [[typed_name(name, "the data set") for name in pair] for pair in divisions]
    files = next((pair for pair in named if all(map(is_file, pair))), named[0])
    for name in files:
        if not is_file(name):
            rule = f"no such file{other_spelling(name)}; name two files of text, SOURCES{AND}TARGETS"
            raise ConfigError(f"{source}: {name}: {rule}")
        if file_format(name) in FORMATS:
            rule = "not read as lines of text: its records have columns of their own; name it alone"
            raise ConfigError(f"{source}: {name}: {rule}")
    return files


def _lines(sources: str, targets: str | None = None) -> Iterator[Record]:
    """Yield line n of a file with line n of another. Raises `DataError` if one has more, after the last pair."""
    if targets is None:
        for number, line in enumerate(_lines_of(sources), 1):
            yield Record({SOURCE: line, TARGET: None}, f"{sources}:{number}")
        return
    counts = [0, 0]
    for both in itertools.zip_longest(_lines_of(sources), _lines_of(targets)):
        counts = [count + (line is not None) for count, line in zip(counts, both, strict=True)]
        if None not in both:
            yield Record({SOURCE: both[0], TARGET: both[1]}, f"{sources}:{counts[0]}")
    if counts[0] != counts[1]:
        rule = "line n of one belongs to line n of the other, and from some line on they do not; restore them"
        raise DataError(f"{sources} has {counts[0]:,} lines, {targets} {counts[1]:,}: {rule}")


def _lines_of(file: str) -> Iterator[str]:
    """Yield the lines of a file of UTF-8, which LF and CR LF end; what is not UTF-8 in them is surrogates.

    Raises `DataError` for a file whose lines CR alone ends: all of it would be one line.
    """
    count, line = 0, ""
    with open_bytes(file) as stream:
        for count, data in enumerate(stream, 1):
            line = data.decode(errors="surrogateescape").rstrip("\r\n")
            yield line if count > 1 else line.removeprefix("\ufeff")
    if count == 1 and "\r" in line:
        raise DataError(f"{file}: CR alone ends its lines, expected LF or CR LF; convert it, tr '\\r' '\\n'")
