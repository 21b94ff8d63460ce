"""What happens at evaluation and checkpoint steps of fine-tuning: the best step is kept, and a run may end early.

Holds the decisions; metrics are computed in `evaluator`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.save import Best
from pretrain.data.batch import Batch
from pretrain.train.hooks import RunHooks
from pretrain.train.loop import TrainState

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TaskHooks(RunHooks):
    """The hooks of a fine-tuning run; see `Hooks` in `pretrain.train.loop`."""

    metric: str  # selects the best step; more is better
    patience: int | None  # evaluations without a better one after which the run ends; None: it never does
    evaluated: Best | None = None  # the newest step that was, and its metric; None if that had no value
    largest: float | None = None  # of the values so far
    stalled: int = 0  # evaluations since the largest

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measure the validation set, and whether that is better than before. All ranks measure the same.

        A metric without a finite value is neither: its step cannot be the best, and no patience is used up.
        """
        measured = super().evaluate(state)
        value = measured[self.metric]
        self.evaluated = Best(state.step, value) if math.isfinite(value) else None
        if self.evaluated is None:
            return measured
        if self.largest is None or value > self.largest:
            self.largest, self.stalled = value, 0
        else:
            self.stalled += 1
        return measured

    def value_of(self, state: TrainState) -> float | None:
        """Return the metric of a step at which it had a value; one that is saved to be resumed from may have none."""
        return self.evaluated.value if self.evaluated and self.evaluated.step == state.step else None

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `progress` left in the checkpoint that the run resumes from."""
        self.largest, self.stalled = saved["largest"], saved["stalled"]
        self.checkpoints.best = Best(*saved["best"]) if saved["best"] else None

    def progress(self, state: TrainState) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights and moments."""
        return {**super().progress(state), "largest": self.largest, "stalled": self.stalled}

    def until_patience_ends(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the steps up to the one whose evaluation used up the patience."""
        for step in steps:
            if self.patience is not None and self.stalled >= self.patience:
                log.info("%d evaluations without a better %s: the run ends early", self.stalled, self.metric)
                return
            yield step
