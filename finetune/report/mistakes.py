"""The section of the worst errors, and how metrics are shown.

What an error is, and how bad, is for the tasks to say.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from pretrain.report.page import Cell, Number, Section, Table

WORST = 20  # errors that Markdown shows
MOST = 200  # errors that a page shows
TEXT_ROOM = 240  # characters of a text in a table
LABEL_ROOM = 40  # characters of a label


class Mistake(NamedTuple):
    """A wrong answer."""

    badness: tuple[float, ...]  # the largest come first
    cells: Sequence[Cell]  # how wrong, what is predicted, what the data say, the text, where it is


def worst_errors(mistakes: Sequence[Mistake], total: int, by: str) -> Section:
    """Return the worst of the mistakes among `total` answers; `by` says in a few words how wrong one is."""
    rows = [mistake.cells for mistake in sorted(mistakes, key=lambda mistake: mistake.badness, reverse=True)[:MOST]]
    said = f"{len(mistakes):,} of {total:,} answers differ from the data."
    if not rows:
        return Section("Worst errors", [said])
    shown = f" Listed are {len(rows):,}." if len(rows) < len(mistakes) else ""
    table = Table([by, "predicted", "in the data", "text", "where"], rows, first=WORST)
    return Section("Worst errors", [f"{said} Sorted by {by}, worst first.{shown}", table])


def metric(value: float) -> Cell:
    """Return a metric with four digits after the point; the largest float stands for a threshold that is infinite."""
    value = math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
    return Number(f"{value:.4f}", value)
