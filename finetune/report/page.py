"""Of what a report page is made: sections of Markdown and pictures, and foreign texts cut to a readable length.

Holds no task's section, no drawing and no files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.report.markdown import literal

WORST = 20  # errors that a page shows
TEXT_ROOM = 240  # characters of a text in a table
LABEL_ROOM = 40  # characters of a label


class Picture(NamedTuple):
    """A figure of a page."""

    name: str  # of its file, without .png
    shows: str  # what can be seen on it, for those who cannot
    draw: Callable[[Path], None]  # writes it as PNG


class Section(NamedTuple):
    """A part of a page under a title."""

    title: str
    parts: list[str | Picture]  # Markdown and pictures, from top to bottom


class Bin(NamedTuple):
    """Neighbouring values of a whole number, such as lengths."""

    low: int  # the smallest value there is
    high: int  # the largest
    members: np.ndarray  # (n,) int64, which of the values are in it; n > 0

    @property
    def name(self) -> str:
        """What values are in it."""
        return f"{self.low}" if self.low == self.high else f"{self.low}–{self.high}"


def quantile_bins(values: np.ndarray, at_most: int = 6) -> list[Bin]:
    """Return bins of values (n,) int64 in ascending order, about as many values in each; equal values share a bin."""
    if not len(values):
        return []
    cuts = np.quantile(values, np.arange(1, at_most) / at_most, method="higher")
    places = np.searchsorted(np.unique(cuts), values, side="right")
    members = [np.flatnonzero(places == place) for place in np.unique(places)]
    return [Bin(int(values[chosen].min()), int(values[chosen].max()), chosen) for chosen in members]


def clipped(text: str, room: int = TEXT_ROOM) -> str:
    """Return a text as literal Markdown, with an ellipsis for what is beyond `room` characters."""
    return literal(shortened(text, room))


def shortened(text: str, room: int) -> str:
    """Return a text on one line, with an ellipsis for what is beyond `room` characters."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…"


def value_text(value: float) -> str:
    """Return a metric with four digits after the point; a threshold that nothing reaches is the largest number."""
    if abs(value) < sys.float_info.max or math.isnan(value):
        return f"{value:.4f}"
    return "∞" if value > 0 else "-∞"
