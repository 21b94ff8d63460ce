"""Batches that grow: which sizes they have before the last one, and what learning rates go with these.

Holds settings and their arithmetic. Where the slots of a step begin is in `data/course`, how a batch is divided in
`micro_batches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from pretrain.data.course import Course, Size
from pretrain.errors import check
from pretrain.optim.schedule import Multiplier
from pretrain.registry import plain
from pretrain.train.loop import TrainConfig


class BatchLr(StrEnum):
    """What becomes of the learning rate while batches are small."""

    none = "none"  # nothing
    sqrt = "sqrt"  # times the root of the batch's share of the last size, for Adam (Malladi et al. 2022)
    linear = "linear"  # times this share, for plain gradient descent (Goyal et al. 2017)

    @property
    def rule(self) -> Callable[[float], float]:
        """Return the factor as a function of the share, which is in (0, 1]."""
        return {BatchLr.none: lambda share: 1.0, BatchLr.sqrt: math.sqrt, BatchLr.linear: lambda share: share}[self]


@dataclass(kw_only=True)
class GrowthConfig(TrainConfig):
    """How long and in which batches a run pretrains."""

    batch_growth: list[Any] = field(
        default_factory=list
    )  # sizes up to batch_size: [{step: 0, size: 8}, {step: 90, size: 32}]
    batch_lr: BatchLr = BatchLr.none  # smaller batches: lr as it is (none), times their share (linear), its root (sqrt)

    def __post_init__(self) -> None:
        super().__post_init__()
        key, shown = "train.batch_growth", str(self.batch_growth).replace("'", "")  # as it is typed
        if not self.batch_growth:
            rule = "without train.batch_growth all batches have one size; set none, or let them grow"
            check(self.batch_lr is BatchLr.none, "train.batch_lr", self.batch_lr.value, rule)
            return
        rule = "a list of stages, each of a first step and a size: [{step: 0, size: 8}, {step: 90, size: 32}]"
        check(all(map(_is_stage, self.batch_growth)), key, shown, rule)
        sizes = self.sizes
        rule = f"one size for the whole run is train.batch_size={sizes[0].slots}; set that alone, or add a stage"
        check(len(sizes) > 1, key, shown, rule)
        check(sizes[0].step == 0, key, shown, "the first stage must be that of step 0")
        for before, after in pairwise(sizes):
            check(before.step < after.step, key, shown, "each stage must begin at a later step than the one before")
            check(before.slots < after.slots, key, shown, "each stage must have a larger size than the one before")
        rule = f"must end with train.batch_size={self.batch_size}, the size of the last batches; set that to "
        check(sizes[-1].slots == self.batch_size, key, shown, f"{rule}{sizes[-1].slots}, or add a stage")
        rule = f"its last stage begins after the run of train.steps={self.steps}; begin it earlier, or train longer"
        check(sizes[-1].step < self.steps, key, shown, rule)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Return the sizes of batches for a `Course`, in slots, the last one last."""
        grown = tuple(Size(stage["step"], stage["size"]) for stage in self.batch_growth)
        return grown or (Size(0, self.batch_size),)

    def lr_factor(self, course: Course) -> Multiplier:
        """Return what the learning rate of an optimizer step is multiplied by, in (0, 1], from the size of its batch.

        `course` is made of `sizes`; the step that begins with a larger batch has the larger factor.
        """
        rule = self.batch_lr.rule
        return lambda step: rule(len(course.slots(step)) / self.batch_size)


def _is_stage(value: Any) -> bool:
    """Whether a value says from which step on batches have which size."""
    if not isinstance(value, dict) or value.keys() != {"step", "size"}:
        return False
    step, size = value["step"], value["size"]
    return type(step) is int and type(size) is int and step >= 0 and size >= 1


def growth_fingerprints(train: GrowthConfig) -> dict[str, Any]:
    """Return what a resumed run must find unchanged of how its batches grow; steps of older versions did not grow."""
    return {"train.batch_growth": plain(train.batch_growth), "train.batch_lr": train.batch_lr.value}
