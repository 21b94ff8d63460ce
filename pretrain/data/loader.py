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


def micro_batches_per_step(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Return how many micro-batches each rank runs in a step. Raises `ConfigError` if the batch is not divisible."""
    together = micro_batch_size * world_size
    lower = max(batch_size // together, 1) * together
    product = f"train.micro_batch_size x ranks = {micro_batch_size} x {world_size} = {together}"
    rule = f"must be a multiple of {product}; the nearest are {lower} and {lower + together}"
    check(batch_size % together == 0, "train.batch_size", batch_size, rule)
    return batch_size // together


class StepLoader:
    """Iterates over the optimizer steps `start_step` to `num_steps - 1`, a list of this rank's micro-batches each.

    Step s holds the sequence numbers from s * batch_size up to (s + 1) * batch_size, whatever the number of ranks and
    the size of micro-batches; rank r takes the r-th of `world_size` equal runs of them. A thread builds up to `depth`
    steps ahead. Its errors are raised at the step that they belong to. The thread ends with `close`, at the end of a
    `with` block, or when the loader is garbage collected.
    """

    def __init__(
        self,
        stream: TrainStream,
        examples: Examples,
        *,
        batch_size: int,  # sequences in a step, over all ranks
        micro_batch_size: int,  # sequences
        rank: int,
        world_size: int,
        start_step: int,
        num_steps: int,  # of the whole run
        pin: bool,  # page-lock the batches, for copies to a GPU that do not wait
        depth: int = 2,  # steps
    ) -> None:
        micro_batches_per_step(batch_size, micro_batch_size, world_size)
        per_rank = batch_size // world_size
        own_first = rank * per_rank

        def build() -> Iterator[list[Batch]]:
            at_a_time = max(1, _LOCATED // per_rank)
            for first in range(start_step, num_steps, at_a_time):
                steps = np.arange(first, min(first + at_a_time, num_steps))
                numbers = steps[:, None] * batch_size + own_first + np.arange(per_rank)
                for keys in stream.locate(numbers.reshape(-1)).reshape(-1, per_rank, 3):
                    micros = [keys[at : at + micro_batch_size] for at in range(0, per_rank, micro_batch_size)]
                    batches = [Batch.of(examples(stream.read(micro))) for micro in micros]
                    yield [batch.pin_memory() for batch in batches] if pin else batches

        self._steps = build()
        self._builder = ThreadPoolExecutor(1, "loader")
        self._close = weakref.finalize(self, self._builder.shutdown, cancel_futures=True)
        self._ahead = deque(self._builder.submit(next, self._steps) for _ in range(depth))

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if not self._close.alive:
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
        """End the thread and drop what it built. A second call does nothing."""
        self._close()


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
