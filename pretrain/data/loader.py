"""Batches of training and held-out text, built ahead of the step that needs them.

Holds the data configuration, the batches and the thread that builds them; which tokens are in a slot is in `stream`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.batch import Batch, Examples
from pretrain.data.course import Course, micro_batches_per_step
from pretrain.data.packing import Packing
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import SourceConfig
from pretrain.data.stream import HeldOut, PackedSource, TrainStream
from pretrain.errors import check
from pretrain.registry import register

_LOCATED = 1024  # slots located in the corpora at a time: numpy takes as long for a few as for many


@register("data", "packed")
@dataclass(kw_only=True)
class DataConfig:
    """The text to train on and how it is cut into sequences."""

    seq_len: int = 1024  # tokens in a slot, the longest context that is trained
    packing: Packing = Packing.concat  # concat cuts the stream; best_fit and windows keep documents whole
    stride: int = 0  # tokens of text that neighbouring windows of a long document share, with packing=windows
    isolate_documents: bool = True  # each document in a slot is a sequence of its own: attention and positions restart
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # by name; more than one are mixed by weight
    accept_changed: bool = False  # go on with a corpus that is not the one a resumed run began with, and note that
    prepare: PrepareConfig = field(default_factory=PrepareConfig)  # how text becomes a corpus of token ids

    def __post_init__(self) -> None:
        check(self.seq_len >= 2, "data.seq_len", self.seq_len, "at least 2 tokens")
        rule = f"0 (windows share nothing) or a number of tokens below data.seq_len={self.seq_len}"
        check(0 <= self.stride < self.seq_len, "data.stride", self.stride, rule)
        windows = self.packing is Packing.windows
        rule = "only windows overlap; choose data.packing=windows, or 0"
        check(windows or not self.stride, "data.stride", self.stride, rule)
        rule = "data.packing=windows makes each window a sequence of its own; set true, or choose another packing"
        check(self.isolate_documents or not windows, "data.isolate_documents", self.isolate_documents, rule)
        check(len(self.sources) > 0, "data.sources", self.sources, "at least one source, e.g. data=stdlib")

    def train_stream(self, corpora: dict[str, Path], seed: int) -> TrainStream:
        """Open the training splits of prepared corpora, by source name. Raises `DataError` for damaged ones."""
        names = sorted(self.sources)  # the order on the command line must not matter
        return TrainStream(
            self._open(corpora, dict.fromkeys(self.sources, "train"), partial=False),
            [self.sources[name].weight for name in names],
            seed=seed,
            isolate=self.isolate_documents,
        )

    def held_out(self, corpora: dict[str, Path], splits: dict[str, str] | None = None) -> HeldOut:
        """Open prepared corpora, by source name, to be measured: the validation splits, or others by source name.

        Raises `DataError` for damaged ones.
        """
        splits = splits or dict.fromkeys(self.sources, "validation")
        return HeldOut(self._open(corpora, splits, partial=True), isolate=self.isolate_documents)

    def _open(self, corpora: dict[str, Path], splits: dict[str, str], *, partial: bool) -> list[PackedSource]:
        cut: Any = {"seq_len": self.seq_len, "packing": self.packing, "stride": self.stride, "partial": partial}
        return [PackedSource.open(name, corpora[name], splits[name], **cut) for name in sorted(self.sources)]


class StepLoader:
    """Iterates over the optimizer steps `start_step` to `num_steps - 1`, a list of this rank's micro-batches each.

    Step s holds the slots that its `course` has for it, whatever the number of ranks and the size of micro-batches;
    rank r takes the r-th of `world_size` equal runs of them. A thread builds up to `depth` steps ahead. Its errors are
    raised at the step that they belong to. The thread ends with `close`, at the end of a `with` block, or when the
    loader is garbage collected.
    """

    def __init__(
        self,
        stream: TrainStream,
        examples: Examples,
        *,
        course: Course,
        micro_batch_size: int,  # slots
        rank: int,
        world_size: int,
        start_step: int,
        num_steps: int,  # of the whole run
        pin: bool,  # page-lock the batches, for copies to a GPU that do not wait
        depth: int = 2,  # steps
    ) -> None:
        for size in course.sizes:
            micro_batches_per_step(size.slots, micro_batch_size, world_size)

        def own(step: int) -> np.ndarray:
            slots = course.slots(step)
            share = len(slots) // world_size
            return np.arange(share) + slots.start + rank * share

        def build() -> Iterator[list[Batch]]:
            for numbers in _located_together(map(own, range(start_step, num_steps))):
                located = stream.locate(np.concatenate(numbers))
                for keys in np.split(located, np.cumsum([len(step) for step in numbers])[:-1]):
                    micros = [keys[at : at + micro_batch_size] for at in range(0, len(keys), micro_batch_size)]
                    batches = [Batch.of(examples(stream.read(micro))) for micro in micros]
                    yield [batch.pin_memory() for batch in batches] if pin else batches

        self._steps = build()
        self._builder = ThreadPoolExecutor(1, "loader")
        # The garbage collector may run in the thread itself, or amid what the thread waits for: it must not wait.
        self._collected = weakref.finalize(self, self._builder.shutdown, wait=False, cancel_futures=True)
        self._ahead = deque(self._builder.submit(next, self._steps) for _ in range(depth))

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if not self._collected.alive:
            raise StopIteration
        batches = self._ahead[0].result()  # an error, or the end, stays in front for the next call
        self._ahead.popleft()
        self._ahead.append(self._builder.submit(next, self._steps))
        return batches

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, wait for its end, and drop what it built. A second call does nothing."""
        self._collected()
        self._builder.shutdown()


def _located_together(steps: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Join the slots of consecutive steps to lists that are worth a call of `locate`."""
    waiting: list[np.ndarray] = []
    for step in steps:
        waiting.append(step)
        if sum(map(len, waiting)) >= _LOCATED:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def evaluation_batches(
    held_out: HeldOut,
    examples: Examples,
    *,
    micro_batch_size: int,  # slots
    rank: int,
    world_size: int,
    max_slots: int = 0,  # 0 = all; fewer are spread evenly over all sources
    source: bool = False,  # whether inputs have a source beside them: batches without text need one, too
) -> Iterator[Batch]:
    """Yield this rank's share of the held-out slots, each slot on exactly one rank.

    All ranks get the same number of batches, because sharded engines communicate in every forward pass: a rank without
    slots yields a batch without targets.
    """
    total = held_out.num_slots
    num_slots = min(total, max_slots) if max_slots else total
    chosen = np.arange(num_slots) * total // max(num_slots, 1)
    for first in range(0, num_slots, micro_batch_size * world_size):
        start = first + rank * micro_batch_size
        own = chosen[start : start + micro_batch_size]
        yield Batch.of(examples(held_out.slots(own))) if len(own) else Batch.empty(source=source)
