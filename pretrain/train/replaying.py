"""Steps of a run taken again: what was recorded of them, what they give now, and what follows from a difference.

Holds the comparison and the hooks of a loop that writes nothing; `pretrain.replay` builds the run anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pretrain.distributed.world import World
from pretrain.errors import ConfigError, NumericalError
from pretrain.files import parsed
from pretrain.tracking.jsonl import METRICS_FILE
from pretrain.train.loop import TrainState
from pretrain.train.metrics import StepMeter
from pretrain.train.run_dir.base import TRACE_FILE


class Tolerance(NamedTuple):
    """Relative differences that are none."""

    loss: float
    grad_norm: float


SAME = Tolerance(1e-5, 1e-5)  # in fp32, on as many ranks and with the settings that the run had
# In fp32 on other ranks, where sums have another order: after 50 steps of a small decoder on 1 and 2 ranks losses and
# norms differed by 2e-7 at a learning rate of 3e-4. At 3e-3, where Adam moves weights whose gradients are little more
# than rounding, norms differed by 3e-5.
REORDERED = Tolerance(1e-5, 1e-3)
ROUNDED = Tolerance(1e-2, 1e-2)  # where products round their inputs to 10 bits of mantissa or fewer: tf32, bf16, fp16


class Taken(NamedTuple):
    """What a step gave."""

    loss: float | None  # nats a target; None: it had no target
    grad_norm: float

    def difference(self, other: Taken) -> Tolerance:
        """Return the relative differences of the two values; infinite where one alone is a number."""
        return Tolerance(_relative(self.loss, other.loss), _relative(self.grad_norm, other.grad_norm))


def recorded(run: Path, first: int, last: int) -> dict[int, Taken]:
    """Return what a run recorded of its steps from `first` to `last`, in trace.jsonl and metrics.jsonl.

    Raises `ConfigError` if it recorded none of them, and for a damaged file.
    """
    found: dict[int, Taken] = {}
    for path in (run / METRICS_FILE, run / TRACE_FILE):
        for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
            try:
                row = parsed(line)
                if row.get("split", "train") == "train" and first <= row["step"] <= last:
                    loss = row["loss"]
                    found[row["step"]] = Taken(None if loss is None else float(loss), float(row["grad_norm"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}:{number}: no record of a step ({error}); mend or delete the line") from None
    if not found:
        rule = "name steps at which it logged, or train with log.trace=N, which keeps the newest N steps of each save"
        raise ConfigError(f"{run}: the run recorded none of the steps {first} to {last}; {rule}")
    return dict(sorted(found.items()))


@dataclass(kw_only=True)
class ReplayHooks:
    """The hooks of a loop that looks at each step up to `last`, and writes nothing; see `Hooks` in `loop`."""

    world: World
    meter: StepMeter
    last: int  # optimizer step
    taken: dict[int, Taken] = field(default_factory=dict)
    log_every: int = 1
    evaluate_every: int = 0
    _step: int = 0

    def log(self, state: TrainState) -> None:
        """Keep what the step gave."""
        reading = self.meter.read(self.world.sum_tensor)
        self.taken[state.step] = Taken(reading.loss, reading.grad_norm)
        self._step = state.step

    def evaluate(self, state: TrainState) -> object:
        """Measure nothing."""

    def save(self, state: TrainState, *, required: bool) -> None:
        """Save nothing."""

    def settle(self) -> None:
        """Nothing is pending."""

    def is_due(self, state: TrainState) -> bool:
        """Whether to save: never."""
        return False

    def end_early(self) -> bool:
        """Whether this was the last step of the replay."""
        return self._step >= self.last


def verdict(before: dict[int, Taken], now: dict[int, Taken], tolerance: Tolerance, notes: Iterable[str]) -> str:
    """Say that the steps of a run agree with those taken again, within a tolerance, and what that means.

    `notes` are what is known to be otherwise than it was. Raises `NumericalError` that names the first step that
    differs.
    """
    said = "".join(f"\n  {note}" for note in notes)
    steps, differences = [*before], {step: before[step].difference(now[step]) for step in before}
    for number, (step, (loss, norm)) in enumerate(differences.items()):
        if loss > tolerance.loss or norm > tolerance.grad_norm:
            agree = f"steps {steps[0]} to {steps[number - 1]} agree" if number else "it is the first that was recorded"
            raise NumericalError(
                f"step {step} differs: {_shown(before[step])} in the run, {_shown(now[step])} now; the difference is "
                f"{loss:.1e} and {norm:.1e}; {tolerance.loss:g} and {tolerance.grad_norm:g} may be rounding; {agree}. "
                "The same data and recipe gave something else: hardware or software of the run, or of this replay, is "
                f"at fault up to this step; other devices tell which.{said}"
            )
    loss, norm = (max(values) for values in zip(*differences.values(), strict=True))
    return (
        f"{len(steps)} recorded steps from {steps[0]} to {steps[-1]} agree: losses to {loss:.1e} "
        f"(of {tolerance.loss:g}), gradient norms to {norm:.1e} (of {tolerance.grad_norm:g}). The run computed what it "
        f"should; what is wrong with it is in the data or the recipe.{said}"
    )


def _shown(taken: Taken) -> str:
    return f"loss {'none' if taken.loss is None else f'{taken.loss:.6f}'}, gradient norm {taken.grad_norm:.6f}"


def _relative(before: float | None, now: float | None) -> float:
    if before is None or now is None:
        return 0.0 if before is now else math.inf
    if before == now or (math.isnan(before) and math.isnan(now)):
        return 0.0
    if not (math.isfinite(before) and math.isfinite(now)):
        return math.inf
    return abs(before - now) / max(abs(before), abs(now))
