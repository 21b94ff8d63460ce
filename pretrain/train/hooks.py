"""What happens at log, evaluation and checkpoint steps of a run.

Holds the glue between measurements, sinks and checkpoints; the loop decides when, `session` builds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pretrain.checkpoint.save import Checkpoints
from pretrain.distributed.world import World
from pretrain.errors import NumericalError
from pretrain.optim.base import learning_rates
from pretrain.strategy.base import Memory, Strategy
from pretrain.tracking.base import Tracker
from pretrain.train.loop import TrainState
from pretrain.train.metrics import StepMeter, Throughput, memory
from pretrain.train.summary import compare_memory


@dataclass(kw_only=True)
class RunHooks:
    """The hooks of a pretraining run; see `Hooks` in `loop`. Methods are collectives, rank 0 alone has a tracker."""

    log_every: int  # optimizer steps
    evaluate_every: int  # optimizer steps, 0 = never
    save_every: int  # optimizer steps
    max_skipped: int  # optimizer steps in a row without an update that the run survives
    world: World
    strategy: Strategy
    meter: StepMeter
    throughput: Throughput
    evaluator: Callable[[], dict[str, float]]  # measures held-out text; a collective
    checkpoints: Checkpoints
    tracker: Tracker | None
    fingerprints: dict[str, Any]  # what a resume must find unchanged
    facts: dict[str, Any] = field(default_factory=dict)  # what run.json says of the model, on rank 0
    predicted: Memory | None  # of a rank; compared with what it holds at the first log, then None

    def log(self, state: TrainState) -> None:
        """Read the meter and write a training record.

        Raises `NumericalError` after more than `max_skipped` skipped updates in a row.
        """
        reading = self.meter.read(state.step_targets, self.world.sum_tensor)
        if self.tracker:
            record = {"step": state.step, "split": "train", "loss": reading.loss, "tokens": state.tokens}
            record |= learning_rates(self.strategy.optimizer) | {"grad_norm": reading.grad_norm}
            record |= self.throughput.lap(state.step, state.tokens) | memory(self.world.device)
            self.tracker.log(record | {"skipped": reading.skipped})
        self._check_memory()
        if reading.skipped_in_a_row > self.max_skipped:
            self.checkpoints.settle(wait=True)  # all ranks are here: a save under way need not be lost
            raise NumericalError(
                f"step {state.step}: {reading.skipped_in_a_row} updates in a row skipped for a non-finite gradient "
                f"(train.max_skipped={self.max_skipped}); weights are as before them. Lower optim.lr, or use "
                "precision=bf16, and start again: the run resumes from its newest checkpoint"
            )

    def _check_memory(self) -> None:
        if self.predicted and self.world.device.type == "cuda":  # nobody counts what tensors take up on a CPU
            held = self.world.gather(torch.cuda.memory_allocated(self.world.device))
            if self.world.is_first:
                compare_memory(max(held), self.predicted)
            self.predicted = None

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measure held-out text, write a validation record, and return what was measured."""
        with self.throughput.paused():
            measured = self.evaluator()
        if self.tracker:
            self.tracker.log({"step": state.step, "split": "validation", "tokens": state.tokens, **measured})
        return measured

    def save(self, state: TrainState, *, required: bool) -> None:
        """Save a checkpoint. Raises `ResourceError` if a `required` one fails, or too many in a row."""
        with self.throughput.paused():
            value, progress = self.value_of(state), self.progress(state)
            self.checkpoints.save(state.step, self.strategy, progress, value=value, required=required)

    def value_of(self, state: TrainState) -> float | None:
        """Return what a step that is saved is compared with others by; the best one stays. None: it is not compared."""
        return None

    def progress(self, state: TrainState) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights and moments."""
        logged = self.tracker.mark() if self.tracker else None  # rank 0, which has a tracker, writes the state
        return {"tokens": state.tokens, "resume": self.fingerprints, "facts": self.facts, "metrics": logged}

    def settle(self) -> None:
        """Advance a pending save. Raises `ResourceError` as `save` does."""
        with self.throughput.paused():
            self.checkpoints.settle()
