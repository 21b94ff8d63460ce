"""Pairs: documents cut in two for next-sentence and sentence-order prediction.

Holds arithmetic on token ids; the classifier and its loss are in `masked_lm`. Free of torch.

Letters: N tokens of the micro-batch, S sequences, B slots.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np

from pretrain.data.batch import IGNORED, Slots, Vocabulary
from pretrain.objectives.draws import Use, uniform
from pretrain.objectives.masking import word_starts
from pretrain.objectives.ranges import Parts, Ranges, sequences_of, texts_in

APART = 1  # the label of a pair whose second part does not follow the first; 0: it does


class Sentences(StrEnum):
    """What the classifier predicts of the two parts of a pair."""

    none = "none"  # nothing: documents stay whole
    nsp = "nsp"  # next sentence: whether the second part comes from another document (Devlin et al. 2019)
    sop = "sop"  # sentence order: whether the parts were swapped (Lan et al. 2020, "ALBERT")


class Pairs(NamedTuple):
    """Slots whose sequences became pairs where they could: as many sequences as before, none of them longer."""

    slots: Slots  # N tokens anew; `following` is IGNORED throughout
    segments: np.ndarray  # (N,) int64, 1 for the second part and what ends it, else 0
    labels: np.ndarray  # (S,) int64: 0, APART, or IGNORED for a sequence that is no pair


class Pairing:
    """Makes pairs `prefix A suffix B suffix` of sequences: a pure function of the slots, their keys and the seed.

    A sequence's text is cut where a word begins, each such place being as likely. With `sop` the parts change places
    with probability 1/2. With `nsp`, B is replaced with probability 1/2 by a stretch of another sequence of the same
    slot, any one being as likely, which begins with a word and is as long as B if that sequence is long enough.

    A pair has one suffix more than a document. It may not become longer than the sequence it is made of, for that may
    be as long as the model's context: so the text loses as many tokens at its end.

    A sequence stays as it is, without a label, if its text has no two words; with `nsp` also if no other sequence of
    its slot has text. A corpus of documents as long as slots therefore gives `nsp` nothing to learn.
    """

    def __init__(self, sentences: Sentences, vocabulary: Vocabulary, seed: int) -> None:
        """Take a vocabulary that has ids both before and after a document."""
        assert vocabulary.prefix and vocabulary.suffix
        self._sentences = sentences
        self._vocabulary = vocabulary
        self._seed = seed

    def __call__(self, slots: Slots) -> Pairs:
        """Return the pairs of slots."""
        offsets = slots.offsets.astype(np.int64)
        bounds = sequences_of(slots)
        numbers = uniform(self._seed, Use.pairs, slots.keys, np.diff(bounds), columns=4)
        words = np.flatnonzero(word_starts(slots.tokens, offsets, self._vocabulary))
        texts = texts_in(slots, self._vocabulary)

        room = np.diff(offsets) - len(self._vocabulary.prefix) - 2 * len(self._vocabulary.suffix)
        ends = np.minimum(texts.ends, texts.begins + room)
        low, high = words.searchsorted(texts.begins + 1), words.searchsorted(ends)  # the words that B may begin with
        rows = low < high
        if self._sentences is Sentences.nsp:
            rows &= _others(texts, bounds) > 0
        rows = np.flatnonzero(rows)  # (P,) the sequences that become pairs
        cuts = words[_pick(low[rows], high[rows], numbers[rows, 0])]
        first, second = Ranges(texts.begins[rows], cuts), Ranges(cuts, ends[rows])
        apart = numbers[rows, 1] < 0.5
        if self._sentences is Sentences.sop:
            first, second = first.where(~apart, second), second.where(~apart, first)
        else:
            strangers = _strangers(texts, bounds, words, rows, second.lengths, numbers[rows])
            second = second.where(~apart, strangers)
        labels = np.full(len(offsets) - 1, IGNORED)
        labels[rows] = np.where(apart, APART, 0)
        return self._assemble(slots, bounds, rows, first, second, labels)

    def _assemble(
        self, slots: Slots, bounds: np.ndarray, rows: np.ndarray, first: Ranges, second: Ranges, labels: np.ndarray
    ) -> Pairs:
        """Put special tokens around the parts of the pairs `rows`; all other sequences stay as they are."""
        prefix, suffix = self._vocabulary.prefix, self._vocabulary.suffix
        pool = np.concatenate([slots.tokens, prefix, suffix])
        begins = np.zeros((len(labels), 5), dtype=np.int64)  # of the five parts of each sequence, in the pool
        lengths = np.zeros_like(begins)
        begins[:, 0], lengths[:, 0] = slots.offsets[:-1], np.diff(slots.offsets)
        led, closed = len(slots.tokens), len(slots.tokens) + len(prefix)
        begins[rows] = np.stack(np.broadcast_arrays(led, first.begins, closed, second.begins, closed), axis=1)
        around, after = len(prefix), len(suffix)
        lengths[rows] = np.stack(np.broadcast_arrays(around, first.lengths, after, second.lengths, after), axis=1)
        parts = Parts(np.full(len(labels), 5))
        parts.put(np.arange(begins.size), begins.reshape(-1), lengths.reshape(-1))
        tokens, offsets = parts.joined(pool)
        segments = np.tile([0, 0, 0, 1, 1], len(labels)).repeat(lengths.reshape(-1))
        nothing = np.full_like(tokens, IGNORED)
        return Pairs(Slots(tokens, nothing, offsets, offsets.astype(np.int64)[bounds], slots.keys), segments, labels)


def _pick(low: np.ndarray, high: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return integers, each as likely in range(low, high), from numbers in [0, 1); all (P,)."""
    return low + (numbers * (high - low)).astype(np.int64)


def _others(texts: Ranges, bounds: np.ndarray) -> np.ndarray:
    """Return how many sequences with text are in the slot of each sequence with text, beside itself, (S,)."""
    have_text = texts.lengths > 0
    before = np.concatenate([[0], have_text.cumsum()])
    return np.diff(before[bounds]).repeat(np.diff(bounds)) - have_text


def _strangers(
    texts: Ranges,
    bounds: np.ndarray,  # (B+1,) sequences
    words: np.ndarray,  # where words begin
    rows: np.ndarray,  # (P,) sequences whose second part comes from another one of their slot
    lengths: np.ndarray,  # (P,) tokens wanted
    numbers: np.ndarray,  # (P, 4), of which the last two are used
) -> Ranges:
    """Return a stretch of another text of the slot for each row."""
    candidates = np.flatnonzero(texts.lengths > 0)
    slot = bounds.searchsorted(rows, side="right") - 1
    low, high = candidates.searchsorted(bounds[slot]), candidates.searchsorted(bounds[slot + 1])
    picked = _pick(low, high - 1, numbers[:, 2])
    picked += picked >= candidates.searchsorted(rows)  # a row does not pick itself
    begins, ends = texts.begins[candidates[picked]], texts.ends[candidates[picked]]
    low, high = words.searchsorted(begins), words.searchsorted(np.maximum(begins, ends - lengths), side="right")
    chosen = words[_pick(low, high, numbers[:, 3])]
    return Ranges(chosen, np.minimum(chosen + lengths, ends))
