"""Masking: which tokens of a slot the model must predict, and what it sees in their place.

Holds arithmetic on token ids; the loss is in `masked_lm`. Free of torch.

Letters: N tokens of the micro-batch, B slots, V vocabulary, W words of text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pretrain.data.batch import IGNORED, Slots, Vocabulary
from pretrain.errors import check
from pretrain.objectives.draws import Use, uniform

# The lengths of spans in words (Joshi et al. 2020, "SpanBERT", section 3.1): geometric with p = 0.2, nothing above 10.
_SPAN = 0.2 * 0.8 ** np.arange(10)
_SPAN /= _SPAN.sum()
_MEAN_SPAN = float(_SPAN @ np.arange(1, 11))  # 3.8 words
_LEFT = _SPAN[::-1].cumsum()[::-1] / _MEAN_SPAN  # of a span met somewhere inside: words from there to its end, from 1
MAX_SPAN_RATE = 0.79  # above it the mean gap between spans would be less than a word


class Unit(StrEnum):
    """What is masked as a whole."""

    tokens = "tokens"  # each token by itself (Devlin et al. 2019)
    whole_words = "whole_words"  # all tokens of a word
    spans = "spans"  # one to ten words in a row (Joshi et al. 2020)


@dataclass(kw_only=True)
class MaskingConfig:
    """Which tokens are to be predicted, and what the model sees in their place.

    Every token of text is chosen with probability `rate` exactly, whatever the unit and wherever it stands; special
    tokens ([CLS], [SEP], <|endoftext|>) never are. So the share of a slot varies around the rate: a quota would choose
    long words and short documents less often.

    - `tokens`: each token is chosen by itself.
    - `whole_words`: each word is chosen by itself.
    - `spans`: along the words of a slot, spans and gaps take turns; a span has SpanBERT's length, a gap has a
      geometric length of a word or more, with the mean that gives the rate. A slot begins in the middle of that.

    What replaces a chosen token is decided for each token, but for spans once for all of their tokens.
    """

    rate: float = 0.15  # share of the tokens of text that are chosen; ModernBERT's is 0.3
    unit: Unit = Unit.tokens  # what is chosen as a whole: tokens, whole_words or spans
    mask_share: float = 0.8  # of the chosen tokens: replaced by the tokenizer's mask token
    random_share: float = 0.1  # of the chosen tokens: replaced by a random token of text; the rest stay as they are

    def __post_init__(self) -> None:
        check(0 < self.rate <= 1, "objective.masking.rate", self.rate, "above 0 and at most 1")
        rule = f"at most {MAX_SPAN_RATE} for objective.masking.unit=spans, which have a word between them"
        check(self.unit is not Unit.spans or self.rate <= MAX_SPAN_RATE, "objective.masking.rate", self.rate, rule)
        for key in ("mask_share", "random_share"):
            check(0 <= getattr(self, key) <= 1, f"objective.masking.{key}", getattr(self, key), "between 0 and 1")
        rule = f"and objective.masking.mask_share={self.mask_share} must not be above 1 together"
        together = self.mask_share + self.random_share
        check(together <= 1 + 1e-9, "objective.masking.random_share", self.random_share, rule)


class Masking:
    """Masks tokens of slots: a pure function of the slots, their keys and the seed."""

    def __init__(self, config: MaskingConfig, vocabulary: Vocabulary, mask: int, seed: int) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._mask = mask  # id of the mask token
        self._ordinary = np.flatnonzero(~vocabulary.special)  # ids that a random token may have
        self._seed = seed

    def __call__(self, slots: Slots) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that the model sees (N,) and its targets (N,), IGNORED where nothing was chosen."""
        config, tokens = self._config, slots.tokens
        columns = 4 if config.unit is Unit.spans else 3  # choice, fate, random id, length of a span
        numbers = uniform(self._seed, Use.masking, slots.keys, np.diff(slots.slots), columns)
        chosen, decider = self._choose(slots, numbers)
        fate = numbers[decider, 1]
        shown = tokens.copy()
        shown[chosen[fate < config.mask_share]] = self._mask
        replaced = chosen[(fate >= config.mask_share) & (fate < config.mask_share + config.random_share)]
        shown[replaced] = self._ordinary[(numbers[replaced, 2] * len(self._ordinary)).astype(np.int64)]
        targets = np.full_like(tokens, IGNORED)
        targets[chosen] = tokens[chosen]
        return shown, targets

    def _choose(self, slots: Slots, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where chosen tokens are (M,), and for each the token whose numbers decide its replacement (M,)."""
        rate, unit = self._config.rate, self._config.unit
        text = ~self._vocabulary.special[slots.tokens]
        if unit is Unit.tokens:
            chosen = np.flatnonzero(text & (numbers[:, 0] < rate))
            return chosen, chosen
        begins = word_starts(slots.tokens, slots.offsets, self._vocabulary) & text
        firsts, word = np.flatnonzero(begins), begins.cumsum() - 1
        if unit is Unit.whole_words:
            chosen = _tokens_of(numbers[firsts, 0] < rate, word, text)
            return chosen, chosen
        hidden, first_of_span = _spans(numbers[firsts][:, [0, 3]], firsts.searchsorted(slots.slots), rate)
        chosen = _tokens_of(hidden, word, text)
        return chosen, firsts[first_of_span[word[chosen]]]


def word_starts(tokens: np.ndarray, offsets: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return where words begin, (N,) bool; a special token counts as a word, and no word spans two sequences."""
    begins = vocabulary.starts_word[tokens]
    begins[1:] |= vocabulary.ends_word[tokens[:-1]]
    begins[offsets[:-1]] = True
    return begins


def _tokens_of(hidden: np.ndarray, word: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return where the tokens of text (N,) are whose word (N,) is masked (W,); -1 is a token before any word."""
    return np.flatnonzero(text & np.append(hidden, False)[word])


def _spans(numbers: np.ndarray, slots: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which words lie in spans (W,) bool, and the first word of the newest span at each (W,).

    `numbers` (W, 2) are two a word, `slots` (B+1,) the words at which slots begin. Gaps G and spans L alternate. With
    E[G] = E[L] (1 - rate) / rate a word lies in a span with probability `rate`, if a slot begins as if the process had
    gone on for ever: inside a span with that probability, whose rest has the law P(L >= r) / E[L] (Cox, "Renewal
    theory", 1962, chapter 5), else inside a gap, whose rest is geometric like the whole.
    """
    num_words = len(numbers)
    counts = np.diff(slots)
    openers = slots[:-1][counts > 0]  # the first word of each slot; each word draws a gap and the span after it
    inside = openers[numbers[openers, 0] < rate]
    waiting = numbers[:, 0].copy()
    waiting[openers] = (waiting[openers] - rate) / (1 - rate)  # what is left of the number that was compared
    mean_gap = _MEAN_SPAN * (1 - rate) / rate
    gaps = 1 + np.floor(np.log1p(-np.maximum(waiting, 0)) / math.log1p(-1 / mean_gap)).astype(np.int64)
    lengths = 1 + _SPAN[:-1].cumsum().searchsorted(numbers[:, 1], side="right")
    gaps[inside] = 0
    lengths[inside] = 1 + _LEFT[:-1].cumsum().searchsorted(numbers[inside, 1], side="right")

    ends = (gaps + lengths).cumsum()
    before = np.concatenate([[0], ends])[slots[:-1]]  # what earlier slots drew
    starts = (ends - lengths) - before.repeat(counts) + slots[:-1].repeat(counts)
    limits = slots[1:].repeat(counts)
    within = starts < limits
    starts, ends = starts[within], np.minimum(starts + lengths, limits)[within]
    begun = np.bincount(starts, minlength=num_words + 1)
    hidden = (begun - np.bincount(ends, minlength=num_words + 1)).cumsum()[:num_words] > 0
    first = np.maximum.accumulate(np.where(begun[:num_words] > 0, np.arange(num_words), 0))
    return hidden, first
