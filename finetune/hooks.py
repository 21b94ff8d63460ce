"""What happens at evaluation and checkpoint steps of fine-tuning: the best step is kept, and a run may end early.

Holds the decisions; what they are made of is measured by `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pretrain.data.base import Batch
from pretrain.hooks import RunHooks
from pretrain.loop import TrainState


@dataclass(kw_only=True)
class TaskHooks(RunHooks):
    """The hooks of a fine-tuning run; see `Hooks` in `pretrain.loop`."""

    metric: str  # what the best step is best in; more is better
    patience: int | None  # evaluations without a better one after which the run ends; None: it never does
    best: dict[str, float] | None = None  # `step` and `value` of the best evaluation, with all that was measured
    stalled: int = 0  # evaluations since then

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measure the validation set, and keep the step if it is the best so far. All ranks measure the same."""
        measured = super().evaluate(state)
        value = measured[self.metric]
        if self.best is None or value > self.best["value"]:
            self.best = {"step": state.step, "value": value, **measured}
            self.checkpoints.favourite = state.step
            self.stalled = 0
        else:
            self.stalled += 1
        return measured

    def progress(self, state: TrainState) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights and moments."""
        return {**super().progress(state), "best": self.best, "stalled": self.stalled}

    def until_it_stalls(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the steps up to the one whose evaluation used up the patience."""
        for step in steps:
            if self.patience is not None and self.stalled > self.patience:
                return
            yield step
