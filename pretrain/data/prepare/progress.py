"""What people see while a corpus is prepared: a progress bar on a terminal, a line now and then elsewhere.

Holds the drawing only, on standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0  # seconds between two lines where there is no terminal


class Bar:
    """Shows finished units and the text that went through."""

    def __init__(self, title: str, total: int, finished: int, progress: Progress | None) -> None:
        self._title = title
        self._total = total  # units
        self._start = self._next_line = time.monotonic()
        self._progress = progress
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(title, total=total, completed=finished, text="")

    def update(self, finished: int, text_chars: int) -> None:
        """Show `finished` units and the characters of text that this process has seen encoded."""
        now = time.monotonic()
        rate = text_chars / max(now - self._start, 1e-3)
        text = f"{text_chars / 1e6:.1f} MB of text, {rate / 1e6:.2f} MB/s"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=finished, text=text)
        elif now >= self._next_line or finished == self._total:
            print(f"{self._title}: {finished}/{self._total} units, {text}", file=sys.stderr, flush=True)
            self._next_line = now + LINE_EVERY_S


@contextmanager
def progress_bar(title: str, total: int, finished: int = 0) -> Iterator[Bar]:
    """Open a bar of `total` units, of which some were finished by an earlier process."""
    if not sys.stderr.isatty():
        yield Bar(title, total, finished, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        yield Bar(title, total, finished, progress)
