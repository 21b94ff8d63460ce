"""Tables of text: how the cells of a CSV or TSV are told apart, and its rows.

Files are opened, and columns checked, in `records`.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from pretrain.data.sources.documents import DOCUMENT_LIMIT
from pretrain.errors import ConfigError, check

Line = tuple[int, list[str] | csv.Error]  # number from 1, and its cells, or why it has none


class Delimiter(StrEnum):
    """What stands between the cells of a row."""

    auto = "auto"  # what the first row shows
    comma = "comma"
    semicolon = "semicolon"
    tab = "tab"
    pipe = "pipe"


ESCAPED = "\ud800"  # in place of a quote after a backslash until cells are told apart; no file can hold it
SIGNS = {Delimiter.comma: ",", Delimiter.semicolon: ";", Delimiter.tab: "\t", Delimiter.pipe: "|"}


class Quotes(StrEnum):
    """How cells are quoted, and a quote within them is written."""

    doubled = "doubled"  # twice (RFC 4180)
    escaped = "escaped"  # after a backslash
    none = "none"  # cells are not quoted: a quote is a character like any other


class Dialect(NamedTuple):
    """How the cells of a table are told apart."""

    delimiter: Delimiter
    quotes: Quotes
    padded: bool = False  # spaces after a delimiter belong to it
    skip: int = 0  # lines before the first row
    end: str = "\n"  # of a row without quotes; where cells may be quoted, any that there is

    @property
    def newline(self) -> str:
        """The `newline` to open a file with: `csv` wants line ends as they are."""
        return self.end if self.quotes is Quotes.none else ""

    def __str__(self) -> str:
        """Say it for a message."""
        quotes = {Quotes.doubled: "quotes", Quotes.escaped: 'quotes, with \\" inside', Quotes.none: "no quotes"}
        return f"{self.delimiter}{' and space' * self.padded} between cells, {quotes[self.quotes]} around them"

    def rows(self, lines: Iterable[str]) -> Iterator[Line]:
        """Yield each row that is not blank with the line where it begins.

        Where quotes are wrong, there is an error for each line: a quote that is never closed swallows all after it.
        """
        lines = itertools.islice(lines, self.skip, None)
        rows = self._unquoted(lines) if self.quotes is Quotes.none else self._quoted(lines)
        return ((number + self.skip, cells) for number, cells in rows)

    def _unquoted(self, lines: Iterable[str]) -> Iterator[Line]:
        for number, line in enumerate(lines, 1):
            if line := line.removesuffix("\n").removesuffix("\r"):
                cells = line.split(SIGNS[self.delimiter])
                yield number, [cell.lstrip(" ") for cell in cells] if self.padded else cells

    def _quoted(self, lines: Iterable[str]) -> Iterator[Line]:
        csv.field_size_limit(DOCUMENT_LIMIT)  # of the process; its own limit is shorter than some documents
        if self.quotes is Quotes.escaped:
            lines = (re.sub(r'\\(["\\])', lambda found: found[1].replace('"', ESCAPED), line) for line in lines)
        reader = csv.reader(lines, delimiter=SIGNS[self.delimiter], skipinitialspace=self.padded, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield from ((wrong, error) for wrong in range(number, reader.line_num + 1))
                continue
            if cells:
                yield number, [cell.replace(ESCAPED, '"') for cell in cells]


USUAL = {".csv": Dialect(Delimiter.comma, Quotes.doubled), ".tsv": Dialect(Delimiter.tab, Quotes.none)}


def find_dialect(
    file: str, sample: str, *, usual: Dialect, delimiter: Delimiter, wanted: Sequence[str], header: Sequence[str]
) -> Dialect:
    """Return the dialect of a file that begins with `sample`.

    A dialect fits if the first row has all columns that are `wanted`, or if there are rows of as many cells as the
    `header` that the user gave; one column alone has the `usual` delimiter. Of several that fit the one is taken that
    makes the most whole rows, and of these the one that its quotes show, or the `usual` one. Where none fits, for the
    message, it is the one that makes the most cells of the first row. The line "sep=;" that Excel puts first decides on
    the delimiter, unless the user does.

    Raises `ConfigError` where two delimiters make as many whole rows.
    """
    if excel := re.match(r'"?sep=(.)"?[\r\n]', sample):
        usual = usual._replace(skip=1)
        known = {sign: name for name, sign in SIGNS.items()}
        rule = f"is none of {' '.join(map(repr, known))}; write the file with one of these between cells"
        check(excel[1] in known, f"{file}:1: sep", repr(excel[1]), rule)
        delimiter = known[excel[1]] if delimiter is Delimiter.auto else delimiter
    if delimiter is not Delimiter.auto:
        usual = usual._replace(delimiter=delimiter)
    if "\r" in sample and "\n" not in sample:
        usual = usual._replace(end="\r")
    delimiters = dict.fromkeys([usual.delimiter, *(SIGNS if delimiter is Delimiter.auto else [])])
    quotes = dict.fromkeys([usual.quotes, *([Quotes.doubled, Quotes.escaped] if '"' in sample else [])])
    for padded in (False, True):
        tried = [usual._replace(delimiter=name, quotes=kind, padded=padded) for name in delimiters for kind in quotes]
        whole = {dialect: _whole_rows(dialect, sample, wanted, header, usual) for dialect in tried}
        best = [dialect for dialect, count in whole.items() if count == max(whole.values()) > 0]
        if len(signs := list(dict.fromkeys(dialect.delimiter for dialect in best))) > 1:
            rule = f"as many rows of {file} have {len(header)} cells with {signs[0]} between them as with {signs[1]}"
            raise ConfigError(f"task.delimiter=auto: {rule}; set the one that is right")
        if len(best) == 1:
            return best[0]
        if best:
            ways = (best[0]._replace(quotes=kind) for kind in _quotes_shown(best[0], sample))
            return next((dialect for dialect in ways if dialect in best), best[0])
    fallback = [usual._replace(delimiter=name) for name in delimiters]
    return max(fallback, key=lambda dialect: len(_first(dialect, sample)))


def _whole_rows(dialect: Dialect, sample: str, wanted: Sequence[str], header: Sequence[str], usual: Dialect) -> int:
    """Return how many rows have as many cells as there are columns; 0 for a dialect that does not fit."""
    names = header or _first(dialect, sample)
    if not set(wanted) <= set(names) or (len(names) == 1 and dialect.delimiter != usual.delimiter):
        return 0
    rows = dialect.rows(io.StringIO(sample, newline=dialect.newline))
    return sum(not isinstance(cells, csv.Error) and len(cells) == len(names) for _, cells in rows)


def _quotes_shown(dialect: Dialect, sample: str) -> list[Quotes]:
    """Return how cells are quoted in a table that makes as many whole rows in several ways, the likeliest first."""
    sign = SIGNS[dialect.delimiter]
    begin, end = rf"(?:^|(?<={re.escape(sign)}))", rf"(?=[{sign}\r\n]|\Z)"  # of a cell
    if dialect.quotes is Quotes.none:
        # Only who writes cells in quotes doubles those inside, or puts all cells of a column into quotes.
        quoted = re.findall(rf'{begin}"((?:[^"\r\n]|"")+)"{end}', sample, re.MULTILINE)
        found = dialect.rows(io.StringIO(sample, newline=dialect.newline))
        rows = [cells for _, cells in found if isinstance(cells, list)]
        columns = zip(*(rows[:-1] or rows), strict=False)  # the last row may be cut
        whole = (all(re.fullmatch('".+"', cell) for cell in column) for column in columns)
        if not any('""' in cell for cell in quoted) and not any(whole):
            return [Quotes.none]
    return [Quotes.doubled, Quotes.escaped]


def _first(dialect: Dialect, sample: str) -> list[str]:
    """Return the cells of the first row, none if its quotes are wrong."""
    _, cells = next(dialect.rows(io.StringIO(sample, newline=dialect.newline)), (0, []))
    return [] if isinstance(cells, csv.Error) else cells
