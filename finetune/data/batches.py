"""Which examples are in which micro-batch of which rank: pure functions of the seed, the step and the lengths.

Holds the order and the division under a budget of tokens; batches are cut by `examples`.

The examples of a step are drawn regardless of their lengths. Within the step they are sorted by length, so that a
micro-batch has similar ones, and dealt to ranks, so that ranks have equal work: neither changes the gradient of the
step, because its loss is one sum over all its targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finetune.data.examples import Examples
from pretrain.data.batch import Batch
from pretrain.data.order import Permutation


@dataclass(frozen=True, kw_only=True)
class TrainingSteps:
    """The steps of a run as one rank sees them: lists of micro-batches, as many on every rank.

    Each example is seen `epochs` times; the last step may be smaller.
    """

    examples: Examples
    epochs: float
    batch_size: int  # examples in a step, over all ranks
    max_tokens: int  # tokens in a micro-batch, sources among them; at least those of the longest example
    seed: int
    rank: int
    world_size: int
    pin: bool = False  # page-lock batches, for copies to a GPU that do not wait

    @property
    def seen(self) -> int:
        """Examples in the whole run, repetitions counted."""
        return max(round(self.epochs * len(self.examples)), 1)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run, at least 1."""
        return -(-self.seen // self.batch_size)

    def since(self, step: int) -> Iterator[list[Batch]]:
        """Yield the steps from number `step` on."""
        for number in range(step, self.total):
            own = divide(self.chosen(number), self.examples.lengths, self.max_tokens, self.world_size)[self.rank]
            batches = [self.examples.batch(part) for part in own]
            yield [batch.pin_memory() for batch in batches] if self.pin else batches

    def chosen(self, step: int) -> np.ndarray:
        """Return the examples of a step over all ranks, (B,) int64: each once an epoch, shuffled anew every epoch."""
        first = step * self.batch_size
        numbers = np.arange(first, min(first + self.batch_size, self.seen))
        epochs, places = np.divmod(numbers, len(self.examples))
        shuffled = [
            Permutation(len(self.examples), seed=self.seed, source=0, epoch=epoch)(places[epochs == epoch])
            for epoch in np.unique(epochs).tolist()
        ]
        return np.concatenate(shuffled)


def divide(chosen: np.ndarray, lengths: np.ndarray, max_tokens: int, world_size: int) -> list[list[np.ndarray]]:
    """Deal examples to ranks and cut each rank's into micro-batches of at most `max_tokens` tokens.

    All ranks get as many micro-batches, perhaps empty ones, because sharded engines communicate in every one.
    """
    longest_first = chosen[np.argsort(-lengths[chosen], kind="stable")]
    place = np.arange(len(chosen))
    there_and_back = place % (2 * world_size)
    owner = np.minimum(there_and_back, 2 * world_size - 1 - there_and_back)
    dealt = [under_budget(longest_first[owner == rank], lengths, max_tokens) for rank in range(world_size)]
    most = max(map(len, dealt))
    return [own + [np.empty(0, dtype=np.int64)] * (most - len(own)) for own in dealt]


def under_budget(ordered: np.ndarray, lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut examples, in their order, into runs of at most `max_tokens` tokens, at least one example each."""
    cuts, tokens = [], 0
    for place, length in enumerate(lengths[ordered].tolist()):
        if tokens and tokens + length > max_tokens:
            cuts.append(place)
            tokens = 0
        tokens += length
    return np.split(ordered, cuts) if len(ordered) else []


def measuring_batches(
    examples: Examples, *, max_tokens: int, rank: int, world_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield this rank's batches of all examples, each with the indices of its examples (none for an empty batch).

    The contents of a batch do not depend on the number of ranks, so the logits do not either, bit for bit.
    """
    longest_first = np.argsort(-examples.lengths, kind="stable")
    parts = under_budget(longest_first, examples.lengths, max_tokens)
    for first in range(0, len(parts), world_size):
        own = parts[first + rank] if first + rank < len(parts) else np.empty(0, dtype=np.int64)
        yield own, examples.batch(own)
