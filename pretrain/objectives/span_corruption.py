"""Span corruption (Raffel et al. 2020, "T5"): drop spans of a text, and predict them from what is left.

Holds the objective's settings and which spans are dropped; the module and its loss are in `sequence_to_sequence`.

Letters: S sequences of the micro-batch, K spans of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pretrain.data.batch import Examples, Inputs, Ragged, Slots, TokenizerParts, Vocabulary
from pretrain.errors import ConfigError, check
from pretrain.objectives.draws import Use, compositions, uniform
from pretrain.objectives.ranges import Parts, Ranges, predicting, sequences_of, texts_in
from pretrain.objectives.sequence_to_sequence import SequenceToSequenceConfig
from pretrain.registry import register

MAX_WEIGHT = 1e6  # shares of infinite weights would be no numbers


@dataclass(kw_only=True)
class Denoiser:
    """How much of a text is dropped, and in spans of what length."""

    density: float = 0.15  # share of the tokens of text that are dropped
    mean_span: float | None = 3.0  # tokens of a span on average; null: one span, the end of the text
    weight: float = 1.0  # of the sequences that it is drawn for, against the other denoisers
    mark: str | None = None  # token in front of the text, so that the model knows which denoiser it is, such as [R]

    def check(self, key: str) -> None:
        """Raise `ConfigError` for a value that makes no sense, as that of a setting that begins with `key`."""
        check(0 < self.density < 1, f"{key}.density", self.density, "must lie between 0 and 1")
        rule = "must be at least 1; null drops one span, the end of the text"
        check(self.mean_span is None or self.mean_span >= 1, f"{key}.mean_span", self.mean_span, rule)
        rule = f"must be above 0, or leave the denoiser out, and at most {MAX_WEIGHT:g}"
        check(0 < self.weight <= MAX_WEIGHT, f"{key}.weight", self.weight, rule)

    def amounts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many tokens are dropped of texts of so many, and in how many spans; of an empty one nothing."""
        mean_span = np.inf if self.mean_span is None else self.mean_span
        dropped = np.round(lengths * self.density).astype(np.int64).clip(1, np.maximum(lengths - 1, 1))
        spans = np.round(dropped / mean_span).astype(np.int64).clip(1, np.maximum(lengths - dropped, 1))
        return dropped * (lengths > 0), spans * (lengths > 0)

    def sides(self, seq_len: float) -> tuple[float, float]:
        """Return roughly how many tokens of source and target a sequence of `seq_len` tokens becomes."""
        dropped = seq_len * self.density
        spans = 1.0 if self.mean_span is None else dropped / self.mean_span
        return seq_len - dropped + spans + (self.mark is not None), dropped + spans + 2


@register("objective", "span_corruption")
@dataclass(kw_only=True)
class SpanCorruptionConfig(SequenceToSequenceConfig):
    """`objective=span_corruption`: predict spans that were dropped from a text (T5), or mixtures of that (UL2).

    Of a text of n tokens, round(n * density) are dropped, at least one and not all if there are several, in
    round(dropped / mean_span) spans, at least one. Dropped and kept tokens are each cut into so many parts, all
    divisions being equally likely; kept and dropped parts alternate, beginning with a kept one. So spans have the mean
    length, and the last one ends the text. A text of one token is dropped whole.

    The source has a sentinel in place of each span, and the special tokens that the sequence has at its ends. The
    target has each span behind its sentinel, then one more sentinel and the tokens after a document. A sequence without
    text, which packing makes where it cuts off a lone special token, has a source and predicts nothing.

    With `mixture` each sequence draws one of several denoisers (Tay et al. 2022, "UL2"). One with `mean_span: null` is
    a prefix language model: it drops the end of the text.

    There are no bits per byte: most tokens are no target.
    """

    density: float = 0.15  # share of the tokens of text that are dropped
    mean_span: float | None = 3.0  # tokens of a dropped span on average; null: one span, the end of the text
    mixture: list[Denoiser] = field(default_factory=list)  # of which each sequence draws one, in place of these two

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, denoiser in enumerate(self.mixture):
            denoiser.check(f"objective.mixture[{number}]")
        self._single.check("objective")

    @property
    def _single(self) -> Denoiser:
        return Denoiser(density=self.density, mean_span=self.mean_span)

    @property
    def denoisers(self) -> list[Denoiser]:
        """The denoisers that sequences draw from."""
        return self.mixture or [self._single]

    def check_tokenizer(self, tokenizer: TokenizerParts, seq_len: int) -> None:
        """Raise `ConfigError` for a tokenizer without enough sentinels, and for settings that lengthen sequences."""
        super().check_tokenizer(tokenizer, seq_len)
        for number, denoiser in enumerate(self.denoisers):
            mark, rule = denoiser.mark, "not a token of this tokenizer; add it to tokenizer.special_tokens, or null"
            check(mark is None or mark in tokenizer.tokens, f"objective.mixture[{number}].mark", mark, rule)
            which = f"density={denoiser.density}, mean_span={denoiser.mean_span}"
            dropped, spans = denoiser.amounts(np.array(seq_len))
            if tokenizer.sentinels < spans + 1:
                raise ConfigError(
                    f"objective=span_corruption: this tokenizer has {tokenizer.sentinels} sentinels (<extra_id_0>, "
                    f"...), and data.seq_len={seq_len} needs {spans + 1} with {which}; set tokenizer.sentinels if it "
                    "is to be trained, else lower data.seq_len or raise objective.mean_span"
                )
            text = max(seq_len - tokenizer.prefix - tokenizer.suffix, 1)
            lost, placed = denoiser.amounts(np.array(text))
            source = seq_len - lost + placed + (mark is not None)
            longest = max(source, dropped + spans + 1 + tokenizer.suffix)
            if longest > seq_len:
                raise ConfigError(
                    f"data.seq_len={seq_len}: with {which} a side of up to {longest} tokens is made of it, and none "
                    "may be longer; raise data.seq_len or objective.mean_span"
                )

    def sides(self, seq_len: float) -> tuple[float, float]:
        """Return roughly how many tokens of source and target a sequence of `seq_len` tokens becomes."""
        weights = [each.weight / sum(other.weight for other in self.denoisers) for each in self.denoisers]
        sides = zip(*(each.sides(seq_len) for each in self.denoisers), strict=True)
        source, target = (sum(w * side for w, side in zip(weights, lengths, strict=True)) for lengths in sides)
        return source, target

    def longest_sides(self, sequences: int, seq_len: int) -> tuple[float, float]:
        """Return how long either side becomes at most: all sequences may have drawn the denoiser that makes it so."""
        source, target = (
            max(lengths) for lengths in zip(*(each.sides(seq_len) for each in self.denoisers), strict=True)
        )
        return source, target

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function from slots to corrupted texts and the spans that they lack; see `ObjectiveConfig`."""
        known = vocabulary()
        self.check_tokenizer(known.parts, seq_len)
        return SpanCorruption(self.denoisers, known, self.decoder_start(lambda: known), seed)


class SpanCorruption:
    """Drops spans of the sequences of slots: a pure function of the slots, their keys and the seed."""

    def __init__(self, denoisers: list[Denoiser], vocabulary: Vocabulary, start: int, seed: int) -> None:
        """Take a vocabulary that has sentinels for the longest sequences, and the id that decoders see first."""
        self._denoisers = denoisers
        self._vocabulary = vocabulary
        self._start = start
        self._seed = seed
        self._marks = [[] if each.mark is None else [vocabulary.ids[each.mark]] for each in denoisers]

    def __call__(self, slots: Slots) -> Inputs:
        """Return a source and a target for each sequence."""
        texts = texts_in(slots, self._vocabulary)
        which = self._drawn(slots)
        spans = self._spans(slots, texts, which)
        source, target = self._source(slots, texts, spans, which), self._target(slots, spans)
        return predicting(target, self._start, source, texts.lengths > 0)

    def _drawn(self, slots: Slots) -> np.ndarray:
        """Return the denoiser of each sequence, (S,)."""
        weights = np.array([each.weight for each in self._denoisers])
        counts = np.diff(sequences_of(slots))
        if len(weights) == 1:
            return np.zeros(counts.sum(), dtype=np.int64)
        numbers = uniform(self._seed, Use.denoisers, slots.keys, counts, columns=1)[:, 0]
        return (weights[:-1].cumsum() / weights.sum()).searchsorted(numbers, side="right")

    def _spans(self, slots: Slots, texts: Ranges, which: np.ndarray) -> _Spans:
        amounts = np.stack([each.amounts(texts.lengths) for each in self._denoisers])  # (denoisers, 2, S)
        dropped, counts = amounts[which, :, np.arange(len(which))].T
        kept = texts.lengths - dropped
        before = np.concatenate([[0], texts.lengths.cumsum()])[sequences_of(slots)]
        numbers = uniform(self._seed, Use.spans, slots.keys, np.diff(before), columns=1)[:, 0]
        sizes = np.stack([dropped, kept], axis=1).reshape(-1)
        parts = np.stack([counts, np.minimum(counts, kept)], axis=1).reshape(-1)
        lengths = compositions(numbers, sizes, parts)
        of_dropped = np.tile([True, False], len(counts)).repeat(parts)
        gaps = np.zeros(counts.sum(), dtype=np.int64)  # of a text that is dropped whole it stays empty
        gaps[(kept > 0).repeat(counts)] = lengths[~of_dropped]
        lengths = lengths[of_dropped]
        firsts = counts.cumsum() - counts
        ends = (gaps + lengths).cumsum()
        shift = texts.begins - np.concatenate([[0], ends])[firsts]
        ends += shift.repeat(counts)
        return _Spans(Ranges(ends - lengths, ends), gaps, counts, np.arange(len(ends)) - firsts.repeat(counts))

    def _source(self, slots: Slots, texts: Ranges, spans: _Spans, which: np.ndarray) -> Ragged:
        """Return the texts with a sentinel in place of each span, their denoiser's token in front."""
        leads = np.array([len(ids) for ids in self._marks])
        sentinels = self._vocabulary.sentinels
        pool = np.concatenate([slots.tokens, *self._marks, sentinels]).astype(np.int64)
        first_lead = len(slots.tokens)
        first_sentinel = first_lead + leads.sum()
        offsets = slots.offsets.astype(np.int64)
        parts = Parts(2 * spans.counts + 3)
        parts.put(parts.firsts, offsets[:-1], texts.begins - offsets[:-1])
        parts.put(parts.firsts + 1, first_lead + (leads.cumsum() - leads)[which], leads[which])
        places = parts.firsts.repeat(spans.counts) + 2 + 2 * spans.numbers
        parts.put(places, spans.dropped.begins - spans.gaps, spans.gaps)
        parts.put(places + 1, first_sentinel + spans.numbers, 1)
        parts.put(parts.lasts, texts.ends, offsets[1:] - texts.ends)
        return parts.joined(pool)

    def _target(self, slots: Slots, spans: _Spans) -> Ragged:
        """Return each span behind its sentinel, then another sentinel and the ids after a document."""
        sentinels, suffix = self._vocabulary.sentinels, self._vocabulary.suffix
        pool = np.concatenate([slots.tokens, sentinels, suffix]).astype(np.int64)
        first_sentinel = len(slots.tokens)
        parts = Parts(2 * spans.counts + 2)
        places = parts.firsts.repeat(spans.counts) + 2 * spans.numbers
        parts.put(places, first_sentinel + spans.numbers, 1)
        parts.put(places + 1, spans.dropped.begins, spans.dropped.lengths)
        parts.put(parts.lasts - 1, first_sentinel + spans.counts, 1)
        parts.put(parts.lasts, first_sentinel + len(sentinels), len(suffix))
        return parts.joined(pool)


class _Spans(NamedTuple):
    """The spans that are dropped, those of the first sequence first."""

    dropped: Ranges  # (K,) where they lie in the stream
    gaps: np.ndarray  # (K,) tokens that are kept between each and the one before, or the begin of the text
    counts: np.ndarray  # (S,) of each sequence
    numbers: np.ndarray  # (K,) of each in its sequence, from 0
