"""A report page: sections of Markdown, each with at most one figure, and the section of the worst errors.

Which sections there are is for the command and the tasks to say; drawing is in `figures`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pretrain.files import replace_file
from pretrain.report.history import save_figure
from pretrain.report.markdown import literal, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.md"
WORST = 20  # errors that a page shows
TEXT_ROOM = 240  # characters of a text in a table
LABEL_ROOM = 40  # characters of a label


class Section(NamedTuple):
    """A part of a page under a title."""

    title: str
    text: str  # Markdown
    figure: Figure | None = None  # shown above the text, saved under the title


class Mistake(NamedTuple):
    """A wrong answer."""

    badness: tuple[float, ...]  # the largest come first
    cells: Sequence[str]  # Markdown: how wrong, what is predicted, what the data say, the text, where it is


def worst_errors(mistakes: Sequence[Mistake], total: int, by: str) -> Section:
    """Return the `WORST` of the mistakes among `total` answers; `by` says in a few words how wrong one is."""
    rows = [mistake.cells for mistake in sorted(mistakes, key=lambda mistake: mistake.badness, reverse=True)[:WORST]]
    count = f"{len(mistakes):,} of {total:,} answers differ from the data."
    if not rows:
        return Section("Worst errors", count)
    errors = table([by, "predicted", "in the data", "text", "where"], rows)
    return Section("Worst errors", f"{count} Sorted by {by}, worst first.\n\n{errors}")


def write_page(title: str, sections: Sequence[Section], out: Path) -> Path:
    """Write a page and its figures into a directory that is there, and return the page's path."""
    parts = [f"# {literal(title)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.figure is not None:
            name = f"{section.title.lower().replace(' ', '-')}.png"
            save_figure(section.figure, out / name)
            parts.append(f"![{section.title}]({name})")
        parts.append(section.text)
    page = out / PAGE
    replace_file(page, [("\n\n".join(filter(None, parts)) + "\n").encode()])
    return page


def clipped(text: str, room: int = TEXT_ROOM) -> str:
    """Return a text as literal Markdown, with an ellipsis for what is beyond `room` characters."""
    return literal(shortened(text, room))


def shortened(text: str, room: int) -> str:
    """Return a text on one line, with an ellipsis for what is beyond `room` characters."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…"


def value_text(value: float) -> str:
    """Return a metric with four digits after the point; the largest float stands for a threshold that is infinite."""
    return f"{math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value:.4f}"
