"""Sentences from CoNLL columns: one word a line, with its tag in another column, and a blank line between sentences.

Other formats are read by `finetune.data`; which tags there may be is in `sentences`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from finetune.data.records import Record
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.data.sources.readers import open_bytes
from pretrain.errors import check

DOCUMENT = "-DOCSTART-"  # the word of a line that stands between documents


def read_columns(file: str, bad_records: BadRecords, *, word_column: int, tag_column: int | None) -> Iterator[Record]:
    """Yield each sentence with its `words`, its `lines`, and its `tags` unless `tag_column` is None.

    Columns count from 0, or from -1 backwards. They are separated by tabs on a line that has one (a word may contain
    spaces then), else by runs of spaces; every line has as many as the first. The file may be compressed. A sentence
    with any other line is reported to `bad_records`, once.

    Raises `ConfigError` for columns that the first line does not have, `DataError` for a file that cannot be read.
    """
    width = 0
    for first, lines in _sentences(file):
        place = f"{file}:{first}"
        if not width and isinstance(lines[0], list):
            width = len(lines[0])
            _check_columns(word_column, tag_column, width, place)
        with bad_records.counted(place):
            rows = [_cells(line, width, f"{file}:{number}") for number, line in enumerate(lines, first)]
            values = {"words": [row[word_column] for row in rows], "lines": range(first, first + len(rows))}
            if tag_column is not None:
                values["tags"] = [row[tag_column] for row in rows]
            yield Record(values, place)


def _sentences(file: str) -> Iterator[tuple[int, list[list[str] | bytes]]]:
    """Yield the number of the first line of each sentence, from 1, and its lines: cells, or bytes that are no UTF-8."""
    held: list[list[str] | bytes] = []
    with open_bytes(file) as stream:
        for number, data in enumerate(itertools.chain(stream, [b""]), 1):
            line = _split(data)
            if line and line[0] != DOCUMENT:
                held.append(line)
            elif held:
                yield number - len(held), held
                held = []


def _split(data: bytes) -> list[str] | bytes:
    """Return the cells of a line, none of a blank one; or the line itself if it is not UTF-8."""
    try:
        # A byte order mark may be on any line, if files were joined.
        text = data.decode().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError:
        return data
    if not text.strip():
        return []
    return text.split("\t") if "\t" in text else [cell for cell in text.split(" ") if cell]


def _cells(line: list[str] | bytes, width: int, place: str) -> list[str]:
    if isinstance(line, bytes):
        raise BadRecordError("not UTF-8", ascii(line)[:80], place)
    if len(line) != width:
        raise BadRecordError("too few or too many columns", f"{len(line)}, expected {width}", place)
    return line


def _check_columns(word_column: int, tag_column: int | None, width: int, place: str) -> None:
    fix = f"{place} has {width}: choose one of them, counted from 0, or from -1 backwards"
    for key, column in (("task.word_column", word_column), ("task.tag_column", tag_column)):
        if column is not None:
            check(-width <= column < width, key, column, f"no such column, {fix}")
    if tag_column is not None:
        rule = f"also the column of words, task.word_column; {fix}"
        check(word_column % width != tag_column % width, "task.tag_column", tag_column, rule)
