"""The best evaluation of a run: which step is kept for it, and when a run that gets no better ends early.

Holds the comparison. What is measured comes from evaluators; the steps on disk are in `checkpoint.save`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.save import Best

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EarlyStopping:
    """Compares evaluations by one metric. All ranks measure the same, and so hold the same."""

    metric: str
    lower_is_better: bool
    patience: int | None = None  # evaluations without a better one after which the run ends; None: it never does
    evaluated: Best | None = None  # the newest, None if the metric had no value there
    best: Best | None = None  # of all, saved or not
    stalled: int = 0  # evaluations since the best

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another one."""
        return value < other if self.lower_is_better else value > other

    def add(self, step: int, measured: dict[str, float]) -> None:
        """Compare an evaluation with those before it.

        A metric without a finite value is neither better nor worse: its step is not the best, and no patience is used.
        """
        value = measured[self.metric]
        self.evaluated = Best(step, value) if math.isfinite(value) else None
        if self.evaluated is None:
            return
        if self.best is None or self.better(value, self.best.value):
            self.best, self.stalled = self.evaluated, 0
        else:
            self.stalled += 1

    def value_at(self, step: int) -> float | None:
        """Return the metric of a step at which it had a value; one that is saved to be resumed from may have none."""
        return self.evaluated.value if self.evaluated and self.evaluated.step == step else None

    def is_best(self, step: int) -> bool:
        """Whether no evaluation was better than that of this step."""
        return self.best is not None and self.best.step == step

    @property
    def is_over(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.stalled >= self.patience

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"best_evaluation": self.best, "stalled": self.stalled}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `progress` left in the checkpoint that a run resumes from; older ones know `best` alone."""
        best = saved.get("best_evaluation") or saved.get("best")
        self.best, self.stalled = Best(*best) if best else None, saved.get("stalled", 0)
