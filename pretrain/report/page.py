"""A report as data: sections of texts, tables and plots, of which `markdown` and `html` make a file each.

Holds what a page is made of and how numbers read; what a page says is for the reports of pretraining and fine-tuning.
Free of torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np

UNKNOWN = "–"
TINY = 1e-200  # below it no value is on a logarithmic axis
AXES = {"step": "optimizer steps", "tokens": "tokens seen", "seconds": "time in training"}
_UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


class Style(StrEnum):
    """How a piece of text is set off."""

    strong = "strong"
    marked = "marked"  # the part of a text that is meant
    emphasis = "emphasis"
    code = "code"


@dataclass(frozen=True)
class Styled:
    """A piece of text that is set off."""

    text: str
    style: Style


Text = str | Styled | tuple[str | Styled, ...]
"""What a reader sees, character by character: nothing in it is markup."""


@dataclass(frozen=True)
class Number:
    """A cell that is sorted by its value."""

    text: str
    value: float


Cell = Text | Number


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; if that is of empty texts, the first column names the rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    first: int | None = None  # rows that Markdown, which cannot scroll or search, shows; None: all


@dataclass(frozen=True)
class Figures:
    """The few numbers that a reader looks for first, each with its name."""

    entries: Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over the course of a run."""

    name: str  # what it is, e.g. the run and the split
    group: str  # entry of the legend that it belongs to, e.g. the run
    label: str | None = None  # its own entry in the legend of a picture
    look: int  # number of its colour and stroke
    x: Mapping[str, np.ndarray]  # for axes of `AXES`, (n,); NaN where not known
    y: np.ndarray  # (n,); NaN where not finite
    line: bool = True  # else dots alone
    dots: bool = False
    smooth: bool = True  # may be shown smoothed if it has many points
    ring: int | None = None  # place of the point to ring


@dataclass(frozen=True)
class Chart:
    """Curves over one another."""

    title: str
    curves: Sequence[Curve]
    logarithmic: bool = False  # where its values allow it
    from_zero: bool = False

    @cached_property
    def values(self) -> np.ndarray:
        """All finite values."""
        values = np.concatenate([np.empty(0), *(curve.y for curve in self.curves)])
        return values[np.isfinite(values)]

    @property
    def is_logarithmic(self) -> bool:
        """Whether a logarithmic axis is allowed and helps: values are positive and far apart."""
        allowed = self.logarithmic and len(self.values) > 0 and self.values.min() > TINY
        return bool(allowed and self.values.max() >= 2 * self.values.min())


@dataclass(frozen=True)
class Charts:
    """Charts side by side on the same horizontal axis."""

    name: str  # of the picture
    charts: Sequence[Chart]
    axis: str  # of `AXES`, that is shown first

    @property
    def axes(self) -> list[str]:
        """The axes on which every point of every curve has a place."""
        curves = [curve for chart in self.charts for curve in chart.curves]
        return [axis for axis in AXES if all(axis in each.x and np.isfinite(each.x[axis]).all() for each in curves)]


@dataclass(frozen=True)
class Matrix:
    """How often which of the names in the data (rows) was predicted as which (columns)."""

    name: str  # of the picture
    names: Sequence[str]
    counts: np.ndarray  # (C, C)

    @property
    def shares(self) -> np.ndarray:
        """The counts as shares of their rows, 0 in an empty one."""
        return self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)


class Continued(NamedTuple):
    """A prompt as a model continued it."""

    run: str  # empty where there is one run
    prompt: str
    continuation: str


@dataclass(frozen=True)
class Samples:
    """What prompts were continued to at each of some steps."""

    steps: Mapping[int, Sequence[Continued]]  # in order


Block = Text | Table | Figures | Charts | Matrix | Samples


@dataclass(frozen=True)
class Section:
    """A part of a page under a title."""

    title: str
    blocks: Sequence[Block]
    reference: bool = False  # to look something up: folded in HTML, left out of Markdown


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report: what it is of, what it says first, and its sections."""

    title: str
    kind: str  # what it reports on, e.g. "Pretraining"
    lead: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=list)


def readable(text: str) -> str:
    """Return a text with U+FFFD for what no page can show: control characters, halves of surrogate pairs."""
    return _UNREADABLE.sub("\ufffd", text)


def plain(cell: Cell) -> str:
    """Return the text of a cell without its styles."""
    match cell:
        case str():
            return cell
        case tuple():
            return "".join(map(plain, cell))
        case _:
            return cell.text


def shortened(text: str, room: int) -> str:
    """Return a text on one line, with an ellipsis for what is beyond `room` characters."""
    text = " ".join(readable(text).split())
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…"


def count(value: object) -> Cell:
    """Return a count in thousands, millions or billions, e.g. `17.3 M`."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNKNOWN
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return Number(f"{value / size:.3g} {unit}", value)
    return Number(f"{value:.0f}", value)


def number(value: float | None, digits: int = 4) -> Cell:
    """Return a number with `digits` digits after the point."""
    return UNKNOWN if value is None else Number(f"{value:,.{digits}f}", value)


def percent(value: float | None) -> Cell:
    """Return a share as a percentage."""
    return UNKNOWN if value is None else Number(f"{value:.1%}", value)
