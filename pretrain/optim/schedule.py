"""Learning-rate schedules: pure functions from the step about to be taken to a multiple of the peak learning rate.

Holds no state: the peak belongs to `optim` and the step to the loop, so resuming needs nothing. It also means that a
resumed run follows what its schedule says now: `LearningRate.change` tells where that is not what it said before.

Steps count from 0. A warm-up of W steps rises in a straight line: step s < W takes (s + 1) / (W + 1), so the first step
already learns and step W is the first at the peak. A decay is aimed at its floor in step `total_steps`, one beyond the
last, so a floor of 0 wastes no step: falling over D steps, the last one has come (D - 1) / D of the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, NamedTuple, Self

from pretrain.errors import ConfigError, check
from pretrain.registry import register

Multiplier = Callable[[int], float]
"""The step about to be taken, counted from 0 -> the share of the peak learning rate that it takes, in [0, 1]."""

TOLERANCE = 0.01  # relative difference of learning rates that nobody needs to hear of


def cosine_curve(progress: float) -> float:
    """Half a period of the cosine, from 1 to 0 (Loshchilov & Hutter 2017, SGDR, equation 5 without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_curve(progress: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - progress


def one_minus_sqrt_curve(progress: float) -> float:
    """From 1 to 0, steep first (Hägele et al. 2024, "Scaling laws ... beyond fixed training durations")."""
    return 1.0 - math.sqrt(progress)


def fall(step: int, *, start: int, end: int, curve: Callable[[float], float], floor: float) -> float:
    """Return 1 up to step `start`, `floor` from step `end` on, and the curve, scaled to end at the floor, between."""
    if step >= end:
        return floor
    if step <= start:
        return 1.0
    return floor + (1.0 - floor) * curve((step - start) / (end - start))


@dataclass(kw_only=True)
class ScheduleConfig:
    """What every schedule has: a linear warm-up (Goyal et al. 2017), then a course of its own."""

    EITHER: ClassVar = ("warmup_steps", "warmup_ratio")  # one thing: `settings.alternatives`

    warmup_steps: int = 0  # optimizer steps below the peak at the start of the run
    warmup_ratio: float = 0.0  # the same as a share of the run's steps, where warmup_steps is 0

    def __post_init__(self) -> None:
        check(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "must be 0 (no warm-up) or more")
        ratio = self.warmup_ratio
        check(0 <= ratio <= 1, "schedule.warmup_ratio", ratio, "a share of the run's steps, in [0, 1]")
        rule = f"schedule.warmup_steps={self.warmup_steps} says it as well; leave out one of the two"
        check(not (ratio and self.warmup_steps), "schedule.warmup_ratio", ratio, rule)

    def in_steps(self, total_steps: int) -> Self:
        """Return the schedule with a warm-up that is given in steps."""
        if not self.warmup_ratio:
            return self
        return replace(self, warmup_steps=round(self.warmup_ratio * total_steps), warmup_ratio=0.0)

    def build(self, total_steps: int) -> Multiplier:
        """Return the multiplier of a run of `total_steps` steps. Raises `ValueError` if its phases do not fit."""
        if self.warmup_ratio:
            return self.in_steps(total_steps).build(total_steps)
        check(
            self.warmup_steps <= total_steps,
            "schedule.warmup_steps",
            self.warmup_steps,
            f"is longer than the run of {total_steps} steps; shorten it, or train longer",
        )

        def multiplier(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            return self.after_warmup(step, total_steps)

        return multiplier

    def after_warmup(self, step: int, total_steps: int) -> float:
        """Return the multiplier of a step that is not below `warmup_steps`."""
        raise NotImplementedError


@register("schedule", "constant")
@dataclass(kw_only=True)
class ConstantSchedule(ScheduleConfig):
    """The peak until the end."""

    def after_warmup(self, step: int, total_steps: int) -> float:
        return 1.0


@register("schedule", "inverse_sqrt")
@dataclass(kw_only=True)
class InverseSqrtSchedule(ScheduleConfig):
    """In proportion to 1 / sqrt(step), for a run of any length (Vaswani et al. 2017, equation 3).

    Steps count from 1 there. The peak is at its warm-up's last step, here the first one after `warmup_steps`.
    """

    def after_warmup(self, step: int, total_steps: int) -> float:
        return math.sqrt((self.warmup_steps + 1) / (step + 1))


@dataclass(kw_only=True)
class FallingSchedule(ScheduleConfig):
    """What the schedules have that fall to a floor."""

    floor: float = 0.0  # share of the peak at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.floor <= 1, "schedule.floor", self.floor, "is a share of the peak, between 0 and 1")


@register("schedule", "cosine")
@dataclass(kw_only=True)
class CosineSchedule(FallingSchedule):
    """Half a cosine down to the floor over the rest of the run; a tenth of the peak is the custom since GPT-3."""

    floor: float = 0.1  # share of the peak at the end

    def after_warmup(self, step: int, total_steps: int) -> float:
        return fall(step, start=self.warmup_steps, end=total_steps, curve=cosine_curve, floor=self.floor)


@register("schedule", "linear")
@dataclass(kw_only=True)
class LinearSchedule(FallingSchedule):
    """A straight line down to the floor over the rest of the run."""

    def after_warmup(self, step: int, total_steps: int) -> float:
        return fall(step, start=self.warmup_steps, end=total_steps, curve=linear_curve, floor=self.floor)


class Decay(StrEnum):
    """The course of a warmup-stable-decay schedule's last phase."""

    linear = "linear"
    one_minus_sqrt = "one_minus_sqrt"


_DECAY_CURVES = {Decay.linear: linear_curve, Decay.one_minus_sqrt: one_minus_sqrt_curve}


@register("schedule", "wsd")
@dataclass(kw_only=True)
class WsdSchedule(FallingSchedule):
    """Warmup, stable, decay (Hu et al. 2024, MiniCPM): the peak until a short decay at the end.

    Everything before the decay is the same for runs of any length, so a checkpoint of the stable phase can be carried
    on to a longer run.
    """

    decay_share: float = 0.2  # share of the run's steps that decay, rounded to whole steps
    decay: Decay = Decay.one_minus_sqrt  # linear or one_minus_sqrt

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0.0 <= self.decay_share <= 1.0, "schedule.decay_share", self.decay_share, "must be between 0 and 1")

    def decay_start(self, total_steps: int) -> int:
        """Return the last step at the peak: the decay reaches from it to the end of the run."""
        return total_steps - round(self.decay_share * total_steps)

    def build(self, total_steps: int) -> Multiplier:
        """Return the multiplier of a run of `total_steps` steps. Raises `ValueError` if warm-up and decay overlap."""
        decay_start = self.decay_start(total_steps)
        check(
            self.warmup_steps <= decay_start,
            "schedule.warmup_steps",
            self.warmup_steps,
            f"reaches into the decay, which starts at step {decay_start} (schedule.decay_share={self.decay_share} of "
            f"{total_steps} steps); shorten the warm-up or the decay, or train longer",
        )
        return super().build(total_steps)

    def after_warmup(self, step: int, total_steps: int) -> float:
        curve = _DECAY_CURVES[self.decay]
        return fall(step, start=self.decay_start(total_steps), end=total_steps, curve=curve, floor=self.floor)


class CooldownShape(StrEnum):
    """The course of a cooldown."""

    linear = "linear"
    sqrt = "sqrt"


_COOLDOWN_CURVES = {CooldownShape.linear: linear_curve, CooldownShape.sqrt: one_minus_sqrt_curve}


@register("schedule", "cooldown")
@dataclass(kw_only=True)
class CooldownSchedule(ScheduleConfig):
    """The peak up to a step, then down to the end (Hägele et al. 2024): how a branch of a run at its peak ends.

    Unlike `wsd` it says the step at which the fall begins, so that cooldowns of several lengths may share what is
    before.
    """

    from_step: int | None = None  # last optimizer step at the peak; null: where the run branches off (branch_from)
    shape: CooldownShape = CooldownShape.sqrt  # linear, or sqrt: one minus the square root, steep first
    final: float = 0.0  # share of the peak at the end

    def __post_init__(self) -> None:
        super().__post_init__()
        begin = self.from_step
        check(begin is None or begin >= 0, "schedule.from_step", begin, "an optimizer step, 0 or more")
        check(0 <= self.final <= 1, "schedule.final", self.final, "is a share of the peak, between 0 and 1")

    def build(self, total_steps: int) -> Multiplier:
        """Return the multiplier of a run of `total_steps` steps. Raises `ValueError` if its phases do not fit."""
        begin, warmup = self.from_step, self.in_steps(total_steps).warmup_steps
        rule = "schedule=cooldown must know where it begins: say the last step at the peak, or branch_from=RUN@STEP"
        if begin is None:
            raise ConfigError(f"schedule.from_step=null: {rule}")
        rule = f"leaves nothing to cool down, the run has {total_steps} steps; begin earlier, or raise train.steps"
        check(begin < total_steps, "schedule.from_step", begin, rule)
        rule = f"lies in the warm-up of {warmup} steps; begin later, or shorten that"
        check(warmup <= begin, "schedule.from_step", begin, rule)
        return super().build(total_steps)

    def after_warmup(self, step: int, total_steps: int) -> float:
        begin = self.from_step
        assert begin is not None, "`build` refuses it"
        return fall(step, start=begin, end=total_steps, curve=_COOLDOWN_CURVES[self.shape], floor=self.final)


class LearningRate(NamedTuple):
    """The learning rate of a run: the largest, of an optimizer whose groups have several."""

    peak: float
    schedule: ScheduleConfig
    total_steps: int
    batch: Multiplier = lambda step: 1.0  # what the size of a step's batch makes of it, in (0, 1]

    @property
    def multiplier(self) -> Multiplier:
        """Return the share of the peak that a step takes. Raises `ConfigError` for a schedule that does not fit."""
        course = self.schedule.build(self.total_steps)
        return lambda step: course(step) * self.batch(step)

    def at(self, step: int) -> float:
        """Return the learning rate of the step about to be taken, counted from 0."""
        return self.peak * self.multiplier(step)

    def change(self, before: LearningRate, step: int) -> str | None:
        """Say what becomes of the learning rate of a run that resumes after `step` steps, and was planned as `before`.

        None if the next step is as planned or like the one before, or the last one was taken.
        """
        used, now = before.at(step - 1), self.at(step)
        goes_on = any(math.isclose(now, rate, rel_tol=TOLERANCE) for rate in (used, before.at(step)))
        if step >= self.total_steps or goes_on:
            return None
        jump = f"the learning rate {'rises' if now > used else 'falls'} from {used:.2e} to {now:.2e} at step {step + 1}"
        if (self.peak, self.schedule) != (before.peak, before.schedule):
            return f"{jump}: optim.lr or the schedule changed"
        return (
            f"{jump}: its schedule now reaches to train.steps={self.total_steps}, before to {before.total_steps}. "
            f"schedule=constant optim.lr={used:.2e} holds it; a new run with init_from has a warm-up of its own; "
            "a run that is to be carried on wants schedule=constant, or wsd until its decay"
        )
