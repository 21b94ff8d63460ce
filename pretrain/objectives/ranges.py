"""Ranges of tokens in the flat stream: where the texts of sequences lie, and new sequences made of such ranges.

Holds arithmetic on places, and no objective; which ranges are taken is for the objectives to say. Free of torch.

Letters: N tokens of the micro-batch, S sequences, P ranges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pretrain.data.batch import IGNORED, Inputs, Ragged, Slots, Vocabulary
from pretrain.data.corpus import concatenated_ranges


class Ranges(NamedTuple):
    """Runs of tokens in the flat stream."""

    begins: np.ndarray  # (P,) int64
    ends: np.ndarray  # (P,) int64, none below its begin

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.begins

    def where(self, kept: np.ndarray, other: Ranges) -> Ranges:
        """Return these ranges where `kept` (P,), the others elsewhere."""
        return Ranges(np.where(kept, self.begins, other.begins), np.where(kept, self.ends, other.ends))


def texts_in(slots: Slots, vocabulary: Vocabulary) -> Ranges:
    """Return where the text of each sequence lies, without the special tokens that packing left at its ends.

    Packing may have cut a document, so that one end or both have none. A sequence of special tokens has an empty text.
    """
    tokens, begins, ends = slots.tokens, slots.offsets[:-1].astype(np.int64), slots.offsets[1:].astype(np.int64)
    prefix, suffix, last = vocabulary.prefix, vocabulary.suffix, len(tokens) - 1
    led = [tokens[(begins + place).clip(max=last)] == token for place, token in enumerate(prefix)]
    closed = [tokens[(ends - place).clip(min=0)] == token for place, token in enumerate(suffix[::-1], start=1)]
    first = np.minimum(begins + len(prefix) * np.all(led, axis=0), ends)
    return Ranges(first, np.maximum(ends - len(suffix) * np.all(closed, axis=0), first))


def sequences_of(slots: Slots) -> np.ndarray:
    """Return the sequences at which slots begin, (B+1,) int64."""
    return slots.offsets.searchsorted(slots.slots)


class Parts:
    """New sequences, each of them some ranges of a pool of tokens, one after another."""

    def __init__(self, counts: np.ndarray) -> None:
        """Make room for `counts` (S,) ranges of each sequence, which are empty until they are `put`."""
        self._bounds = np.concatenate([[0], counts.cumsum()])
        self._begins, self._lengths = np.zeros((2, self._bounds[-1]), dtype=np.int64)

    @property
    def firsts(self) -> np.ndarray:
        """The place of the first range of each sequence, (S,)."""
        return self._bounds[:-1]

    @property
    def lasts(self) -> np.ndarray:
        """The place of the last range of each sequence, (S,)."""
        return self._bounds[1:] - 1

    def put(self, places: np.ndarray, begins: np.ndarray | int, lengths: np.ndarray | int) -> None:
        """Fill places with ranges of the pool."""
        self._begins[places] = begins
        self._lengths[places] = lengths

    def joined(self, pool: np.ndarray) -> Ragged:
        """Return the sequences."""
        offsets = np.concatenate([[0], self._lengths.cumsum()])[self._bounds]
        return Ragged(pool[concatenated_ranges(self._begins, self._lengths)], offsets.astype(np.int32))


def predicting(target: Ragged, start: int, source: Ragged, predicted: np.ndarray) -> Inputs:
    """Return what trains an encoder-decoder to write each target, whose tokens it sees one place later, from a source.

    `start` is the id that it sees first. Only sequences that are `predicted` (S,) bool have targets.
    """
    tokens = np.empty_like(target.tokens)
    tokens[1:] = target.tokens[:-1]
    tokens[target.offsets[:-1]] = start
    targets = np.where(predicted.repeat(np.diff(target.offsets)), target.tokens, IGNORED)
    return Inputs(tokens, targets, target.offsets, source=source)
