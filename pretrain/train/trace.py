"""The newest steps of a run one by one: loss and gradient norm of each, written when a step is saved.

Holds the steps that are to be written and their file; `pretrain.replay` reads it. Log lines have the same numbers, and
cost a wait for the device each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import check
from pretrain.tracking.jsonl import JsonlSink
from pretrain.train.loop import LogConfig
from pretrain.train.metrics import Measured


@dataclass(kw_only=True)
class TracedLogConfig(LogConfig):
    """How often metrics are read from the device and written, and how many steps are kept one by one."""

    trace: int = 0  # newest optimizer steps whose loss and norm go to trace.jsonl with each save; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.trace >= 0, "log.trace", self.trace, "0 or more optimizer steps")


class Trace:
    """The newest steps of a run and their file, on the rank that has one."""

    def __init__(self, steps: int, path: Path, start_step: int) -> None:
        """Keep so many steps between two saves. Lines of steps after `start_step`, of an earlier start, go."""
        self._kept: deque[tuple[int, Measured]] = deque(maxlen=steps)  # that are not written yet, with their numbers
        self._path = path
        self._lines = JsonlSink(path) if path.exists() else None
        if self._lines:
            self._lines.truncate_after(start_step)

    def add(self, step: int, steps: Sequence[Measured]) -> None:
        """Keep the steps up to `step`."""
        self._kept.extend(enumerate(steps, step - len(steps) + 1))

    def write(self) -> None:
        """Write a line for each step that is kept and not written yet. Raises `ResourceError` for a full disk."""
        for step, measured in self._kept:
            self._lines = self._lines or JsonlSink(self._path)
            self._lines.log({"step": step, "loss": measured.loss, "grad_norm": measured.grad_norm})
        self._kept.clear()

    def close(self, exit_code: int) -> None:
        """Make the lines durable and close the file."""
        if self._lines:
            self._lines.close(exit_code)
