"""What happens at log, evaluation and checkpoint steps of a run.

Holds the glue between measurements, sinks and checkpoints; the loop decides when, `session` builds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pretrain.checkpoint.save import Best, Checkpoints
from pretrain.distributed.stragglers import Stragglers
from pretrain.distributed.world import World
from pretrain.errors import NumericalError
from pretrain.optim.base import learning_rates
from pretrain.strategy.base import Memory, Strategy
from pretrain.tracking.base import Record, Sample, Tracker
from pretrain.train.detours.divergence import Watch
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.loop import TrainState
from pretrain.train.metrics import Reading, StepMeter, Throughput, Unlogged, memory
from pretrain.train.own_hooks import OwnHooks
from pretrain.train.profiling.base import StepProfiler
from pretrain.train.replicas import Replicas
from pretrain.train.skips import Skips
from pretrain.train.summary import compare_memory
from pretrain.train.trace import Trace

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RunHooks:
    """The hooks of a run; see `Hooks` in `loop`. Methods are collectives, rank 0 alone has a tracker."""

    log_every: int  # optimizer steps
    evaluate_every: int  # optimizer steps, 0 = never
    save_every: int  # optimizer steps
    skips: Skips
    world: World
    strategy: Strategy
    meter: StepMeter
    throughput: Throughput
    evaluator: Callable[[], dict[str, float]]  # measures held-out text; a collective
    choices: Callable[[], dict[str, float]] = dict  # answers multiple-choice questions; a collective
    continuations: Callable[[], list[Sample]] = list  # writes samples; a collective
    stopping: EarlyStopping
    save_best: bool = False  # save a step that was evaluated as the best so far, whether `save_every` has it due or not
    own: OwnHooks
    checkpoints: Checkpoints
    tracker: Tracker | None
    fingerprints: dict[str, Any]  # what a resume must find unchanged
    facts: dict[str, Any] = field(default_factory=dict)  # what run.json says of the model, on rank 0
    profiler: StepProfiler | None = None
    stragglers: Stragglers = field(default_factory=lambda: Stragglers(World.alone(), None))
    watch: Watch | None = None  # for a loss that diverges
    trace: Trace | None = None  # of single steps, on rank 0
    replicas: Replicas | None = None  # what ranks hold alike; None: nothing is compared
    predicted: Memory | None  # of a rank; compared with what it holds at the first log, then None

    def log(self, state: TrainState) -> None:
        """Read the meter and write a training record.

        Raises `NumericalError` for too many skipped updates in a row, for a loss scale that can fall no further, and
        `Diverged` as `Watch` does.
        """
        self._collect(state.step)
        reading = self.meter.read()
        of_guard = {} if reading.since.norm_z is None else {"norm_z": reading.since.norm_z}
        record: Record = {
            "step": state.step,
            "split": "train",
            "loss": reading.loss,
            **reading.sentences,
            "tokens": state.tokens,
            **learning_rates(self.strategy.optimizer),
            "grad_norm": reading.grad_norm,
            **self.throughput.lap(state.step, state.tokens),
            **memory(self.world.device),
            "skipped": reading.since.skipped,
            "loss_max": reading.since.loss_max,
            "grad_norm_max": reading.since.grad_norm_max,
            **of_guard,
        }
        with self.throughput.paused():
            record = self.own.logged(record)
        if self.tracker:
            self.tracker.log(record)
        self.stragglers.compare()
        self._check_memory()
        self._check(state.step, reading)

    def _collect(self, step: int) -> None:
        """Write down which of the steps that were taken since the last time were skipped, and trace all of them."""
        steps = self.meter.collect(self.world.sum_tensor)
        self.skips.add(step, steps)
        if self.trace:
            self.trace.add(step, steps)

    def _check(self, step: int, reading: Reading) -> None:
        """Raise what is wrong with the newest steps, once saves and the trace are on disk: all ranks are here."""
        try:
            if reading.since.skipped and self.strategy.scale_exhausted:
                raise self.skips.scale_exhausted(step)
            if failure := self.skips.failure(step):
                raise failure
            if self.watch:
                self.watch.line(step, reading.loss)
        except NumericalError:
            self.checkpoints.settle(wait=True)  # a save under way need not be lost
            if self.trace:
                self.trace.write()
            raise

    def _check_memory(self) -> None:
        if self.predicted and self.world.device.type == "cuda":  # nobody counts what tensors take up on a CPU
            held = self.world.gather(torch.cuda.memory_allocated(self.world.device))
            if self.world.is_first:
                compare_memory(max(held), self.predicted)
            self.predicted = None

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measure held-out text, write a validation record and samples, and return what was measured."""
        with self.throughput.paused():
            measured = self.evaluator() | self.choices()
            samples = self.continuations()
            record = {"step": state.step, "split": "validation", "tokens": state.tokens, **measured}
            record = self.own.evaluated(record)
        self.stopping.add(state.step, measured)
        if self.tracker:
            self.tracker.log(record)
            if samples:
                self.tracker.sampled(state.step, samples)
        return measured

    def save(self, state: TrainState, *, required: bool) -> None:
        """Save a checkpoint. Raises `ResourceError` if a `required` one fails, or too many in a row.

        Raises `NumericalError` before anything is written if ranks differ in what they should hold alike.
        """
        with self.throughput.paused():
            self._compare_replicas()
            value = self.stopping.value_at(state.step)
            self._collect(state.step)
            if self.trace:
                self.trace.write()
            self.checkpoints.save(state.step, self.strategy, self.progress(state), value=value, required=required)

    def _compare_replicas(self) -> None:
        if difference := self.replicas and self.replicas.difference():
            self.checkpoints.settle(wait=True)  # an earlier step, whose replicas were equal, need not be lost
            raise NumericalError(difference)

    def progress(self, state: TrainState) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights and moments."""
        logged = self.tracker.mark() if self.tracker else None  # rank 0, which has a tracker, writes the state
        held = {"tokens": state.tokens, "resume": self.fingerprints, "facts": self.facts, "metrics": logged}
        watched = {"divergence": self.watch.progress()} if self.watch else {}
        counted = {"unlogged": self.meter.unlogged} | self.skips.progress()
        return held | watched | counted | self.stopping.progress()

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `progress` left, and the best step: not where other data are accepted, which do not compare."""
        before = saved.get("resume", {})
        if all(before.get(key, now) == now for key, now in self.fingerprints.items()):
            self.stopping.restore(saved)
            self.skips.restore(saved)
            self.meter.unlogged = Unlogged(*saved.get("unlogged", ()))
            if self.watch:
                self.watch.restore(saved)
            self.checkpoints.best = Best(*saved["best"]) if saved.get("best") else None

    def is_due(self, state: TrainState) -> bool:
        """Whether a step is to be saved that is not the last one."""
        return state.step % self.save_every == 0 or (self.save_best and self.stopping.is_best(state.step))

    def end_early(self) -> bool:
        """Whether the run ends before its last step, which is logged: no patience is left, or hooks ask for it."""
        if self.stopping.is_over:
            stalled, metric = self.stopping.stalled, self.stopping.metric
            log.info("%d evaluations without a better %s: the run ends early (eval.patience)", stalled, metric)
        return self.stopping.is_over or self.own.stop_run()

    def best_saved(self, state: TrainState) -> int:
        """Return the best saved step of a run that has ended; the last one if no evaluation had a value to compare."""
        kept, best, metric = self.checkpoints.best, self.stopping.best, self.stopping.metric
        if kept is None:
            log.warning("no evaluation had a value of %s: the last step, %s, counts as best", metric, state.step)
            return state.step
        log.info("best: %s %.4f at step %s", metric, kept.value, kept.step)
        if best and self.stopping.better(best.value, kept.value):
            log.info("the evaluation at step %s had %s %.4f; that step is not saved", best.step, metric, best.value)
        return kept.step

    def settle(self) -> None:
        """End a step for those who measure it, compare replicas if it is due, and advance a pending save.

        Raises what `save` raises. No pause of the clock: that would wait for the device in every step.
        """
        self.stragglers.end_step()
        if self.profiler:
            self.profiler.end_step()
        if self.replicas and self.replicas.is_due:
            with self.throughput.paused():
                self._compare_replicas()
        self.checkpoints.settle()
