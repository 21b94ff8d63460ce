"""Denoising (Lewis et al. 2020, "BART"): mask spans of a text, perhaps shuffle its sentences, and predict all of it.

Holds the objective's settings and how texts are corrupted; the module and its loss are in `sequence_to_sequence`.

Letters: N tokens of the micro-batch, S sequences, T tokens of text, K spans of all sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pretrain.data.batch import Examples, Inputs, Ragged, Slots, TokenizerParts, Vocabulary
from pretrain.data.corpus import concatenated_ranges
from pretrain.errors import ConfigError, check
from pretrain.objectives.base import at_most
from pretrain.objectives.draws import Use, subsets, uniform
from pretrain.objectives.ranges import Parts, Ranges, predicting, sequences_of, texts_in
from pretrain.objectives.sequence_to_sequence import SequenceToSequenceConfig
from pretrain.registry import register

LONGEST = 100  # tokens of a span on average
MAX_RATE = 0.5  # above it two spans could not always have a token between them


@register("objective", "denoising")
@dataclass(kw_only=True)
class DenoisingConfig(SequenceToSequenceConfig):
    """`objective=denoising`: predict a text from a corrupted one (BART).

    Of a text of n tokens, round(n * rate), at least one, lie in spans whose lengths follow a Poisson distribution; the
    last span drawn is cut to fit. One mask replaces each span, and a span of no tokens inserts one. Spans are placed
    uniformly, with a token between any two. Masks are inserted only as long as the source is not longer than the
    sequence.

    The source keeps the special tokens at the ends of the sequence; the target is the sequence. One without text, which
    packing makes where it cuts off a lone special token, predicts nothing.

    With `permute_sentences` the source has the sentences of a text in random order. A sentence ends with a token that
    ends with a full stop, an exclamation mark or a question mark; abbreviations end one, too.

    There are no bits per byte: the model has seen most of what it predicts.
    """

    rate: float = 0.3  # share of the tokens of text that are masked
    mean_span: float = 3.0  # tokens of a span on average
    permute_sentences: bool = False  # whether the source has the sentences of each text in random order

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.rate <= MAX_RATE, "objective.rate", self.rate, f"above 0 and at most {MAX_RATE}")
        check(0 < self.mean_span <= LONGEST, "objective.mean_span", self.mean_span, f"above 0 and at most {LONGEST}")

    def check_tokenizer(self, tokenizer: TokenizerParts, seq_len: int) -> None:
        """Raise `ConfigError` for a tokenizer without a mask, and for those that no encoder-decoder can work with."""
        super().check_tokenizer(tokenizer, seq_len)
        if not tokenizer.mask:
            raise ConfigError(
                "objective=denoising: this tokenizer has no mask token; name it in tokenizer.mask if that is neither "
                "[MASK] nor <mask>, else add one to tokenizer.special_tokens or choose another tokenizer (a prepared "
                "corpus keeps its own)"
            )

    def sides(self, seq_len: float) -> tuple[float, float]:
        """Return roughly how many tokens of source and target a sequence of `seq_len` tokens becomes."""
        masked = seq_len * self.rate
        return seq_len - masked + min(masked / self.mean_span, masked), seq_len

    def longest_sides(self, sequences: int, seq_len: int) -> tuple[float, float]:
        """Return `sides` with as many spans as draws may make of so many sequences."""
        source, target = self.sides(seq_len)
        spans = source - seq_len * (1 - self.rate)
        return seq_len * (1 - self.rate) + at_most(sequences * spans) / sequences, target

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function from slots to corrupted texts and whole ones; see `ObjectiveConfig`."""
        known = vocabulary()
        self.check_tokenizer(known.parts, seq_len)
        assert known.mask is not None
        return Denoising(self, known, known.mask, self.decoder_start(lambda: known), seed)


class Denoising:
    """Corrupts the sequences of slots: a pure function of the slots, their keys and the seed."""

    def __init__(self, config: DenoisingConfig, vocabulary: Vocabulary, mask: int, start: int, seed: int) -> None:
        """Take the ids of the mask and of what decoders see first."""
        self._config = config
        self._vocabulary = vocabulary
        self._mask = mask
        self._start = start
        self._seed = seed
        self._up_to = _poisson(config.mean_span).cumsum()

    def __call__(self, slots: Slots) -> Inputs:
        """Return a source and a target for each sequence."""
        texts = texts_in(slots, self._vocabulary)
        tokens = self._permuted(slots, texts) if self._config.permute_sentences else slots.tokens
        spans = self._spans(slots, texts)
        offsets = slots.offsets.astype(np.int64)
        parts = Parts(2 * spans.counts + 1)
        places = parts.firsts.repeat(spans.counts) + 2 * spans.numbers
        kept_from = np.empty_like(spans.masked.ends)  # where the tokens in front of each span begin
        kept_from[1:] = spans.masked.ends[:-1]
        kept_from[spans.numbers == 0] = offsets[:-1][spans.counts > 0]
        parts.put(places, kept_from, spans.masked.begins - kept_from)
        parts.put(places + 1, len(tokens), 1)
        rest = offsets[:-1].copy()
        rest[spans.counts > 0] = spans.masked.ends[(spans.counts.cumsum() - 1)[spans.counts > 0]]
        parts.put(parts.lasts, rest, offsets[1:] - rest)
        source = parts.joined(np.append(tokens, self._mask))
        return predicting(Ragged(slots.tokens, slots.offsets), self._start, source, texts.lengths > 0)

    def _spans(self, slots: Slots, texts: Ranges) -> _Spans:
        size, firsts = texts.lengths, texts.lengths.cumsum() - texts.lengths
        has_text = size > 0
        masked = np.round(size * self._config.rate).astype(np.int64).clip(1) * has_text
        before = np.append(firsts, size.sum())[sequences_of(slots)]
        numbers = uniform(self._seed, Use.infilling, slots.keys, np.diff(before), columns=2)
        lengths, counts = self._lengths(numbers[:, 0], size, masked)

        gaps = (size - masked + 1) * has_text  # before, between and after the tokens that are kept
        rows = concatenated_ranges(firsts, gaps)
        chosen = np.flatnonzero(subsets(numbers[rows, 1], gaps, counts))
        sequence = np.arange(len(size)).repeat(counts)
        kept = chosen - (gaps.cumsum() - gaps)[sequence]  # tokens of the text in front of each span
        placed = np.empty_like(lengths)
        placed[np.lexsort((numbers[rows, 1][chosen], sequence))] = lengths  # else the span that was cut would be last
        span_firsts = counts.cumsum() - counts
        ends = placed.cumsum()
        earlier = ends - placed - np.append(0, ends)[span_firsts][sequence]
        begins = texts.begins[sequence] + kept + earlier
        return _Spans(Ranges(begins, begins + placed), counts, np.arange(len(placed)) - span_firsts[sequence])

    def _lengths(self, numbers: np.ndarray, size: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths of spans (K,) and how many each sequence has (S,), from one number a token of text (T,).

        `size` (S,) are the tokens of text, `masked` (S,) those in spans.
        """
        sequence = np.arange(len(size)).repeat(size)
        lengths = self._up_to.searchsorted(numbers, side="right")
        lengths[(size.cumsum() - 1)[size > 0]] = size[size > 0]  # so that the rest is masked, however short spans were
        ends = lengths.cumsum()
        before = ends - lengths - np.append(0, ends)[size.cumsum() - size][sequence]
        drawn = before < masked[sequence]
        lengths = np.minimum(lengths, masked[sequence] - before)
        inserts = drawn & (lengths == 0)
        room = masked - np.bincount(sequence[drawn & ~inserts], minlength=len(size))
        inserted = inserts.cumsum()
        inserted -= np.append(0, inserted)[size.cumsum() - size][sequence]
        drawn &= ~inserts | (inserted <= room[sequence])
        return lengths[drawn], np.bincount(sequence[drawn], minlength=len(size))

    def _permuted(self, slots: Slots, texts: Ranges) -> np.ndarray:
        """Return the tokens (N,) with the sentences of each text in another order, each being as likely."""
        places = concatenated_ranges(texts.begins, texts.lengths)
        firsts = texts.lengths.cumsum() - texts.lengths
        begins = np.append(False, self._vocabulary.ends_sentence[slots.tokens[places[:-1]]])
        begins[firsts[texts.lengths > 0]] = True
        sentences = np.flatnonzero(begins)  # among the tokens of text
        text = np.arange(len(firsts)).repeat(texts.lengths)[sentences]
        counts = np.bincount(text, minlength=len(firsts))
        before = np.append(0, counts.cumsum())[sequences_of(slots)]
        numbers = uniform(self._seed, Use.sentences, slots.keys, np.diff(before), columns=1)[:, 0]
        order = np.lexsort((numbers, text))
        tokens = slots.tokens.copy()
        lengths = np.diff(sentences, append=len(places))
        tokens[places] = slots.tokens[concatenated_ranges(places[sentences][order], lengths[order])]
        return tokens


class _Spans(NamedTuple):
    """The spans that are masked, those of the first sequence first."""

    masked: Ranges  # (K,) where they lie in the stream
    counts: np.ndarray  # (S,) of each sequence
    numbers: np.ndarray  # (K,) of each in its sequence, from 0


def _poisson(mean: float) -> np.ndarray:
    """Return the probabilities of 0, 1, 2, ... up to a number beyond which hardly anything is."""
    counts = np.arange(1, int(4 * mean) + 40)
    return math.exp(-mean) * np.cumprod(np.append(1.0, mean / counts))
