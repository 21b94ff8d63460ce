"""Optimizer steps whose update was skipped: which they were, on which data, why, and when a run gives up.

Holds skips.jsonl in the run directory; steps are judged in `guard`, and counted on the device by `StepMeter`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.errors import Diverged, NumericalError
from pretrain.tracking.jsonl import JsonlSink
from pretrain.train.metrics import Measured

NAMED = 12  # skipped steps that an error names one by one

log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """A skipped step as it is recorded."""

    step: int  # the optimizer step, as records count them: from 1
    data_step: int  # the batch that it took, counted from 0 in the order of the data
    grad_norm: float  # global norm before clipping

    @property
    def cause(self) -> str:
        """Why it was skipped: `non-finite` (its gradient), or `outlier` (the guard refused it)."""
        return "outlier" if math.isfinite(self.grad_norm) else "non-finite"


class Skips:
    """The skipped steps of a run. All ranks keep count alike, the one that has a file writes them down."""

    def __init__(
        self,
        max_in_a_row: int,  # updates in a row without which the run goes on
        data_step: Callable[[int], int] = lambda step: step,  # what batch the optimizer step takes, both from 0
        file: Path | None = None,  # comes with the first skipped step
        start_step: int = 0,  # the step that the run resumes from: lines of later ones go
    ) -> None:
        self._max_in_a_row, self._data_step, self._file = max_in_a_row, data_step, file
        self._lines = JsonlSink(file) if file and file.exists() else None
        self._in_a_row: list[Skipped] = []  # the newest ones
        self._too_many: list[Skipped] = []  # in a row, if there were
        self._newest: list[Skipped] = []  # a few, for messages
        if self._lines:
            self._lines.truncate_after(start_step)

    def add(self, step: int, steps: Sequence[Measured]) -> None:
        """Write down which of the steps up to `step` were skipped.

        Raises `ResourceError` where the file cannot be written.
        """
        numbered = enumerate(steps, step - len(steps) + 1)
        found = [Skipped(at, self._data_step(at - 1), each.grad_norm) for at, each in numbered if each.skipped]
        self._write(found)
        self._newest = [*self._newest, *found][-NAMED:]
        for each in found:
            follows = self._in_a_row and self._in_a_row[-1].step + 1 == each.step
            self._in_a_row = [*self._in_a_row, each] if follows else [each]
            if len(self._in_a_row) > self._max_in_a_row:
                self._too_many = self._in_a_row

    def failure(self, step: int) -> Diverged | None:
        """Return the error of more updates in a row than the run goes on without, up to `step`."""
        if not (too_many := self._too_many):
            return None
        return Diverged(
            f"step {step}: {len(too_many)} updates in a row skipped (train.max_skipped={self._max_in_a_row}): "
            f"{told(too_many)}; weights are as before them. Lower optim.lr, use precision=bf16 for gradients that are "
            "not finite, look at these data, and start again: the run resumes from its newest checkpoint",
            first=too_many[0].step - 1,
            step=step,
        )

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the newest skips in a row. JSON has no norm that is not finite: null."""
        norms = [each.grad_norm if math.isfinite(each.grad_norm) else None for each in self._in_a_row]
        return {"skipped": [(*each[:-1], norm) for each, norm in zip(self._in_a_row, norms, strict=True)]}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `progress` left in the checkpoint that a run resumes from; older ones have nothing."""
        kept = saved.get("skipped", [])
        self._in_a_row = [Skipped(at, data, math.nan if norm is None else norm) for at, data, norm in kept]

    def scale_exhausted(self, step: int) -> NumericalError:
        """Return the error of fp16 gradients that overflow at the smallest loss scale, with what was skipped before."""
        return NumericalError(
            f"step {step}: gradients overflow fp16 even at the smallest loss scale, precision.min_scale; "
            f"{told(self._newest)}; weights are as before them. Use precision=bf16, or lower optim.lr, and start "
            "again: the run resumes from its newest checkpoint"
        )

    def _write(self, skipped: Sequence[Skipped]) -> None:
        if not skipped or self._file is None:
            return
        log.warning("updates skipped: %s", told(skipped))
        self._lines = self._lines or JsonlSink(self._file)
        for each in skipped:
            self._lines.log({**each._asdict(), "cause": each.cause})


def told(skipped: Sequence[Skipped]) -> str:
    """Return skipped steps in words: causes, steps and data steps, the newest of them where they are many."""
    causes = [each.cause for each in skipped]
    counts = ", ".join(f"{causes.count(cause)} {cause}" for cause in dict.fromkeys(causes))
    newest = skipped[-NAMED:]
    places = "; ".join(f"step {each.step} on data step {each.data_step}" for each in newest)
    some = f" (the last {len(newest)} of {len(skipped)})" if len(skipped) > len(newest) else ""
    return f"{counts}: {places}{some}"
