"""A report page as Markdown, with its plots as pictures beside it.

Holds how the parts of a page are spelled, and arbitrary text shown literally. Free of torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pretrain.report.page import (
    Block,
    Cell,
    Charts,
    Figures,
    Matrix,
    Number,
    Page,
    Samples,
    Style,
    Styled,
    Table,
    readable,
)

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}  # a backslash does not help in every reader's table
_MARKUP = re.compile(r"[&<>|\\`*\[\]~$#]|_(?![^\W_])")  # an underscore before a letter or digit ends no emphasis
# Asterisks would not do for all: Markdown takes none for emphasis in the middle of a word, or next to quotes.
_TAGS = {Style.strong: "b", Style.marked: "b", Style.emphasis: "i", Style.code: "code"}
_SIMPLE_CODE = re.compile(r"[^\s`|]+(?: [^\s`|]+)*")  # which backticks can hold, in a table too


def markdown(page: Page) -> str:
    """Return a page as Markdown. Its pictures are named as their blocks; what is for looking up is left out."""
    parts = [f"# {literal(page.title)}", literal(page.kind), *map(_block, page.lead)]
    for section in page.sections:
        if not section.reference:
            parts += [f"## {literal(section.title)}", *map(_block, section.blocks)]
    if left_out := [section.title.lower() for section in page.sections if section.reference]:
        parts.append(f"In `report.html` beside this page: {', '.join(left_out)}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Figures():
            return " · ".join(f"**{inline(cell)}** {literal(name)}" for name, cell in block.entries.items())
        case Charts():
            return f"![{literal(', '.join(chart.title for chart in block.charts))}]({block.name}.png)"
        case Matrix():
            return f"![Confusion matrix]({block.name}.png)"
        case Samples():
            last = max(block.steps)
            rows = [[*map(literal, continued)] for continued in block.steps[last]]
            return f"At step {last:,}:\n\n{table(['run', 'prompt', 'continuation'], rows)}"
        case _:
            return inline(block)


def _table(block: Table) -> str:
    shown = block.rows[: block.first]
    more = f"\n\nThe first {len(shown)} of {len(block.rows):,} rows." if len(shown) < len(block.rows) else ""
    return table([literal(cell) for cell in block.header], [[*map(inline, row)] for row in shown]) + more


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; each cell is one line of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def inline(cell: Cell) -> str:
    """Return a text on one line of Markdown, with its styles."""
    match cell:
        case tuple():
            return "".join(map(inline, cell))
        case Styled(text, Style.code) if _SIMPLE_CODE.fullmatch(readable(text)):
            return f"`{readable(text)}`"
        case Styled(text, style):
            return f"<{_TAGS[style]}>{literal(text)}</{_TAGS[style]}>"
        case Number():
            return literal(cell.text)
        case _:
            return literal(cell)


def literal(text: str) -> str:
    """Return Markdown that shows a text literally, in a paragraph or in a table, but not at the start of a line.

    White space becomes single spaces, as renderers show it anyway; control characters become U+FFFD.
    """
    shown = re.sub(r"\s+", " ", readable(text))
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), shown)
