"""Sentences from CoNLL columns: one word a line, with its tag in another column, and a blank line between sentences.

Other formats are read by `finetune.data`; which tags there may be is in `sentences`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from finetune.data.records import Record
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.readers import open_bytes
from pretrain.errors import check

DOCUMENT = "-DOCSTART-"  # the word of a line that stands between documents


class _Line(NamedTuple):
    number: int  # from 1
    cells: list[str] | None  # None: not UTF-8
    shown: str  # of a line that is not UTF-8


def read_columns(file: str, faults: BadRecords, *, word_column: int, tag_column: int | None) -> Iterator[Record]:
    """Yield each sentence with its `words`, its `lines`, and its `tags` unless `tag_column` is None.

    Columns count from 0, or from -1 backwards. They are separated by tabs on a line that has one (a word may contain
    spaces then), else by runs of spaces; every line has as many as the first. The file may be compressed. A sentence
    with any other line is reported to `faults`, once.

    Raises `ConfigError` for columns that the first line does not have, `DataError` for a file that cannot be read.
    """
    width = 0
    for sentence in _sentences(file):
        place = f"{file}:{sentence[0].number}"
        if not width and sentence[0].cells is not None:
            width = len(sentence[0].cells)
            _check_columns(word_column, tag_column, width, place)
        if fault := _fault(sentence, width):
            reason, line, detail = fault
            faults.report(reason, f"{file}:{line.number}", detail)
            continue
        rows = [line.cells for line in sentence if line.cells is not None]
        first = sentence[0].number
        values = {"words": [row[word_column] for row in rows], "lines": range(first, first + len(rows))}
        if tag_column is not None:
            values["tags"] = [row[tag_column] for row in rows]
        yield Record(values, place)


def _sentences(file: str) -> Iterator[list[_Line]]:
    """Yield the lines of each sentence."""
    held: list[_Line] = []
    with open_bytes(file) as stream:
        for number, data in enumerate(stream, 1):
            line = _parsed(number, data)
            if line.cells is None or (line.cells and line.cells[0] != DOCUMENT):
                held.append(line)
            elif held:
                yield held
                held = []
    if held:
        yield held


def _parsed(number: int, data: bytes) -> _Line:
    """Return the columns of a line; a blank one has none."""
    try:
        # A byte order mark may be on any line, if files were joined.
        text = data.decode().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError:
        return _Line(number, None, ascii(data)[:80])
    if not text.strip():
        return _Line(number, [], "")
    return _Line(number, text.split("\t") if "\t" in text else [cell for cell in text.split(" ") if cell], "")


def _fault(sentence: list[_Line], width: int) -> tuple[str, _Line, str] | None:
    """Return what is wrong with the first bad line of a sentence: the reason, the line, and what is there."""
    for line in sentence:
        if line.cells is None:
            return "not UTF-8", line, line.shown
        if len(line.cells) != width:
            return "too few or too many columns", line, f"{len(line.cells)}, expected {width}"
    return None


def _check_columns(word_column: int, tag_column: int | None, width: int, place: str) -> None:
    fix = f"{place} has {width}: choose one of them, counted from 0, or from -1 backwards"
    for key, column in (("task.word_column", word_column), ("task.tag_column", tag_column)):
        if column is not None:
            check(-width <= column < width, key, column, f"no such column, {fix}")
    if tag_column is not None:
        rule = f"also the column of words, task.word_column; {fix}"
        check(word_column % width != tag_column % width, "task.tag_column", tag_column, rule)
