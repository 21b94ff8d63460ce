"""Which slots of the training data each optimizer step takes: the course of a run through its data.

Holds arithmetic alone, so that a step's data are known without the steps before it; slots are read in `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from pretrain.errors import check


class Size(NamedTuple):
    """The size of batches from a data step on."""

    step: int  # the first data step of this size
    slots: int  # in one batch, over all ranks


class Skip(NamedTuple):
    """A range of data steps that no optimizer step takes."""

    first: int
    end: int  # the first data step after it


@dataclass(frozen=True)
class Course:
    """Maps optimizer steps to data steps, and data steps to slots: a pure function of its fields.

    Data steps count the batches that the data hold, taken or not. Without skips, step s takes data step s. The batch of
    the first data step, `start`, begins with slot 0.
    """

    sizes: Sequence[Size]  # in the order of their steps; the first is that of step 0
    skipped: Sequence[Skip] = ()  # in the order of their steps, none beginning before the one in front of it ends
    start: int = 0  # the data step that begins with slot 0; above 0 in a branch with other data

    def __post_init__(self) -> None:
        assert self.sizes and self.sizes[0].step == 0, "a course has a size from its first step on"
        assert all(first.step < second.step for first, second in pairwise(self.sizes))
        assert all(skip.first < skip.end for skip in self.skipped)
        assert all(first.end <= second.first for first, second in pairwise(self.skipped))

    @classmethod
    def constant(cls, slots: int) -> Course:
        """Return the course of batches of one size, each of which is taken."""
        return cls((Size(0, slots),))

    def data_step(self, step: int) -> int:
        """Return the data step that an optimizer step takes."""
        for skip in self.skipped:
            if step < skip.first:
                break
            step += skip.end - skip.first
        return step

    def slots(self, step: int) -> range:
        """Return the numbers of the slots that an optimizer step takes."""
        data_step = self.data_step(step)
        first = self._before(data_step)
        return range(first, first + self._size(data_step))

    def num_slots(self, step: int) -> int:
        """Return how many slots the data hold before those of an optimizer step, skipped ones included."""
        return self._before(self.data_step(step))

    def taken(self, steps: int) -> int:
        """Return how many slots the first optimizer steps take, whatever data they lie in."""
        end, whole = self.data_step(steps), replace(self, start=0)
        left_out = (whole._before(skip.end) - whole._before(skip.first) for skip in self.skipped if skip.end <= end)
        return whole._before(end) - sum(left_out)

    def _size(self, data_step: int) -> int:
        return next(size.slots for size in reversed(self.sizes) if size.step <= data_step)

    def _before(self, data_step: int) -> int:
        """Return the slots of the data steps from `start` up to this one."""
        ends = [*(size.step for size in self.sizes[1:]), data_step]
        spans = zip(self.sizes, ends, strict=True)
        return sum(size.slots * max(min(end, data_step) - max(size.step, self.start), 0) for size, end in spans)


def micro_batches_per_step(
    batch_size: int, micro_batch_size: int, world_size: int, key: str = "train.batch_size"
) -> int:
    """Return how many micro-batches each rank runs in a step. Raises `ConfigError` if the batch is not divisible.

    `key` is the setting that says how large the batch is.
    """
    together = micro_batch_size * world_size
    lower = max(batch_size // together, 1) * together
    product = f"train.micro_batch_size x ranks = {micro_batch_size} x {world_size} = {together}"
    rule = f"must be a multiple of {product}; the nearest are {lower} and {lower + together}"
    check(batch_size % together == 0, key, batch_size, rule)
    return batch_size // together
