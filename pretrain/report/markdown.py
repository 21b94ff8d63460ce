"""Markdown building blocks: tables, numbers, and arbitrary text shown literally.

Holds no page: the reports of pretraining and of fine-tuning are made of these. Free of torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNKNOWN = "–"
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}  # a backslash does not help in every reader's table
_MARKUP = re.compile(r"[&<>|\\`*\[\]~$#]|_(?![^\W_])")  # an underscore before a letter or digit ends no emphasis
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; each cell is one line of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def literal(text: str) -> str:
    """Return Markdown that shows a text literally, in a paragraph or in a table, but not at the start of a line.

    White space becomes single spaces, as renderers show it anyway; control characters become U+FFFD.
    """
    shown = _CONTROL.sub("\ufffd", re.sub(r"\s+", " ", text))
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), shown)


def count(value: object) -> str:
    """Return a count in thousands, millions or billions, e.g. `17.3 M`."""
    if not isinstance(value, int | float):
        return UNKNOWN
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with `digits` digits after the point."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share as a percentage."""
    return UNKNOWN if value is None else f"{value:.1%}"
