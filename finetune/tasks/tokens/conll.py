"""Sentences from CoNLL columns: one word a line, with its tag in another column, and a blank line between sentences.

Other formats are read by `finetune.data`; which tags there may be is in `sentences`.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from typing import NamedTuple

from finetune.data.records import Record, is_text
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.data.sources.readers import open_bytes
from pretrain.errors import check

DOCUMENT = "-DOCSTART-"  # the word of a line that stands between documents
CONLLU = ["ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC"]

_COLUMN_NAMES = re.compile(r"#\s*global\.columns\s*=(.+)")  # the first line of CoNLL-U Plus
_METADATA = re.compile(r"#\s+\S+\s+=\s|#\s+new(doc|par)\b")  # comments of CoNLL-U
_ID = re.compile(r"[0-9]+([-.][0-9]+)?")  # of CoNLL-U: a word, several that are one token (1-2), an empty node (8.1)

Line = tuple[int, str]  # its number, from 1, and its text

log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """What the lines of words have in common."""

    width: int  # columns
    tabs: bool  # between columns, or else spaces
    names: list[str]  # of the columns of CoNLL-U and CoNLL-U Plus; other files have none

    def column(self, chosen: int | None, name: str, usual: int) -> int:
        """Return the column that was chosen, or else the one of this name, or the usual one."""
        if chosen is not None:
            return chosen
        return self.names.index(name) if name in self.names else usual

    def is_comment(self, line: str) -> bool:
        """Say whether a line ahead of a sentence's words is none of them: "#" may be a word, too."""
        alike = len(_cells(line)) == self.width and ("\t" in line) == self.tabs
        return line.startswith("#") and (not alike or _METADATA.match(line) is not None)

    def is_word(self, row: list[str]) -> bool:
        """Say whether a row stands for a word: of CoNLL-U not for a multi-word token or an empty node."""
        return "ID" not in self.names or row[self.names.index("ID")].isdecimal()


def read_columns(
    file: str, bad_records: BadRecords, *, word_column: int | None, tag_column: int | None, labelled: bool = True
) -> Iterator[Record]:
    """Yield each sentence with its `words`, the `lines` of these, and their `tags` if it is `labelled`.

    Columns count from 0, or from -1 backwards; None is the first for words and the last for tags, in CoNLL-U, which is
    told from its content, FORM and UPOS. They are separated by tabs on a line that has one (a word may contain spaces
    then), else by runs of spaces; every line has as many as the first. The file may be compressed. A sentence with any
    other line is reported to `bad_records`, once.

    Comments ahead of a sentence, multi-word tokens and empty nodes are left out, which is logged.

    Raises `ConfigError` for columns that the first line does not have, `DataError` for a file that cannot be read.
    """
    found = _layout(file)
    if found is None:
        return
    layout, place = found
    word = layout.column(word_column, "FORM", 0)
    tag = layout.column(tag_column, "UPOS", -1) if labelled else None
    _check_columns(word, tag, layout.width, place)
    comments = others = 0
    for lines in _sentences(file):
        words = list(itertools.dropwhile(lambda line: layout.is_comment(line[1]), lines))
        comments += len(lines) - len(words)
        if not words:
            continue
        place = f"{file}:{words[0][0]}"
        with bad_records.counted(place):
            rows = [(number, _row(line, layout.width, f"{file}:{number}")) for number, line in words]
            kept = [(number, row) for number, row in rows if layout.is_word(row)]
            others += len(rows) - len(kept)
            values = {"words": [row[word] for _, row in kept], "lines": [number for number, _ in kept]}
            if tag is not None:
                values["tags"] = [row[tag].strip(" ") for _, row in kept]
            yield Record(values, place)
    if comments or others:
        what = "%s: left out %d lines of comments and %d of multi-word tokens and empty nodes"
        log.info(what, file, comments, others)


def _layout(file: str) -> tuple[Layout, str] | None:
    """Return the layout of a file by its first line of a word, or if all begin with "#" by the first, and its place."""
    first, names = None, []
    for number, line in itertools.chain.from_iterable(_sentences(file)):
        if declared := _COLUMN_NAMES.match(line):
            names = declared[1].split()
        if not line.startswith("#"):
            first = number, line
            break
        first = first or (number, line)
    if first is None:
        return None
    number, line = first
    cells = _cells(line)
    if len(cells) == len(CONLLU) and _ID.fullmatch(cells[0]) and re.fullmatch(r"[0-9]+|_", cells[6]):
        names = names or CONLLU
    return Layout(len(cells), "\t" in line, names if len(names) == len(cells) else []), f"{file}:{number}"


def _sentences(file: str) -> Iterator[list[Line]]:
    """Yield the lines of each sentence. What is no UTF-8 in them is surrogates."""
    held: list[Line] = []
    with open_bytes(file) as stream:
        for number, data in enumerate(itertools.chain(stream, [b""]), 1):
            # A byte order mark may be on any line, if files were joined.
            line = data.decode(errors="surrogateescape").removeprefix("\ufeff").rstrip("\r\n")
            if line.strip(" \t") and _cells(line)[0] != DOCUMENT:
                held.append((number, line))
            elif held:
                yield held
                held = []


def _cells(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def _row(line: str, width: int, place: str) -> list[str]:
    """Return the cells of a line. Raises `BadRecordError` for a line that is no text or has not `width` columns."""
    if not is_text(line):
        raise BadRecordError("not UTF-8", ascii(line)[:80], place)
    if "\r" in line:
        raise BadRecordError("a carriage return inside a line", ascii(line)[:80], place)
    cells = _cells(line)
    if len(cells) != width:
        raise BadRecordError("too few or too many columns", f"{len(cells)}, expected {width}", place)
    return cells


def _check_columns(word_column: int, tag_column: int | None, width: int, place: str) -> None:
    fix = f"{place} has {width}: choose one of them, counted from 0, or from -1 backwards"
    for key, column in (("task.word_column", word_column), ("task.tag_column", tag_column)):
        if column is not None:
            check(-width <= column < width, key, column, f"no such column, {fix}")
    if tag_column is not None:
        rule = f"also the column of words, task.word_column; {fix}"
        check(word_column % width != tag_column % width, "task.tag_column", tag_column, rule)
