"""What happens at evaluation and checkpoint steps of fine-tuning: the best step is kept, and a run may end early.

Holds the decisions; what they are made of is measured by `evaluation`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pretrain.data.base import Batch
from pretrain.hooks import RunHooks
from pretrain.loop import TrainState

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TaskHooks(RunHooks):
    """The hooks of a fine-tuning run; see `Hooks` in `pretrain.loop`."""

    metric: str  # what the best step is best in; more is better
    patience: int | None  # evaluations without a better one after which the run ends; None: it never does
    best_step: int | None = None
    best_value: float = -math.inf  # of the metric; that where it is no number
    stalled: int = 0  # evaluations since the best one

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measure the validation set, and keep the step if it is the best so far. All ranks measure the same."""
        measured = super().evaluate(state)
        value = measured[self.metric]
        if self.best_step is None or value > self.best_value:
            self.best_step, self.best_value = state.step, -math.inf if math.isnan(value) else value
            self.checkpoints.favourite = state.step
            self.stalled = 0
        else:
            self.stalled += 1
        return measured

    def go_on(self, saved: dict[str, Any]) -> None:
        """Take up what `progress` left in the checkpoint that the run resumes from."""
        self.best_step, self.best_value, self.stalled = saved["best_step"], saved["best_value"], saved["stalled"]
        self.checkpoints.favourite = self.best_step

    def progress(self, state: TrainState) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights and moments."""
        own = {"best_step": self.best_step, "best_value": self.best_value, "stalled": self.stalled}
        return {**super().progress(state), **own}

    def until_it_stalls(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the steps up to the one whose evaluation used up the patience."""
        for step in steps:
            if self.patience is not None and self.stalled >= self.patience:
                log.info("%d evaluations without a better %s: the run ends early", self.stalled, self.metric)
                return
            yield step
