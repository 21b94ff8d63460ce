"""Filling in the middle (Bavarian et al. 2022): a decoder learns to write what lies between two parts of a text.

Holds the objective's settings and how texts are rewritten; the module and its loss are those of `causal_lm`.

Letters: N tokens of the micro-batch, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretrain.data.batch import IGNORED, Examples, Inputs, Slots, TokenizerParts, Vocabulary
from pretrain.errors import ConfigError, check
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.draws import Use, uniform
from pretrain.objectives.ranges import Parts, sequences_of, texts_in
from pretrain.registry import register

MARKS = 3  # tokens that mark the parts of a text


@register("objective", "fill_in_the_middle")
@dataclass(kw_only=True)
class FillInTheMiddleConfig(CausalLMConfig):
    """`objective=fill_in_the_middle`: predict each next token of texts, of which some have their middle at the end.

    With probability `rate` the text of a sequence is cut at two places, every token being as likely to follow a cut,
    into prefix, middle and suffix, any of which may be empty. It becomes "<prefix> prefix <suffix> suffix <middle>
    middle" or, with probability `spm`, "<prefix> <suffix> suffix <middle> prefix middle". What ends a document is
    predicted after the middle, also where packing has cut the document: it says that the middle is complete.

    A sequence stays as long as it is: its text loses three tokens at its end for the three marks. One whose text has no
    more than these stays as it is.

    There are no bits per byte: some tokens are lost, and the marks are no text.
    """

    covers_text = False
    rewrites_documents = True

    rate: float = 0.5  # probability that a text is rewritten
    spm: float = 0.5  # probability that the suffix comes first in a text that is rewritten
    prefix_mark: str = "<|fim_prefix|>"  # in front of the prefix
    suffix_mark: str = "<|fim_suffix|>"  # in front of the suffix
    middle_mark: str = "<|fim_middle|>"  # in front of the middle

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("rate", "spm"):
            check(0 <= getattr(self, key) <= 1, f"objective.{key}", getattr(self, key), "must lie in [0, 1]")

    def check_tokenizer(self, tokenizer: TokenizerParts, seq_len: int) -> None:
        """Raise `ConfigError` for a tokenizer that lacks a mark, or any token around documents."""
        for key in ("prefix_mark", "suffix_mark", "middle_mark"):
            rule = "not a token of this tokenizer; add it to tokenizer.special_tokens, or name the tokenizer's own"
            check(getattr(self, key) in tokenizer.tokens, f"objective.{key}", getattr(self, key), rule)
        if not tokenizer.prefix and not tokenizer.suffix:
            raise ConfigError(
                "tokenizer.suffix: this tokenizer puts no token around a document, and one says that a middle is "
                "complete; set tokenizer.prefix or tokenizer.suffix"
            )

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function that rewrites some of the sequences; see `ObjectiveConfig`."""
        known = vocabulary()
        self.check_tokenizer(known.parts, seq_len)
        return FillInTheMiddle(self, known, seed)


class FillInTheMiddle:
    """Rewrites sequences of slots: a pure function of the slots, their keys and the seed."""

    def __init__(self, config: FillInTheMiddleConfig, vocabulary: Vocabulary, seed: int) -> None:
        """Take a vocabulary that has the marks, and ids around documents."""
        self._config = config
        self._vocabulary = vocabulary
        self._seed = seed
        names = (config.prefix_mark, config.suffix_mark, config.middle_mark)
        self._marks = [vocabulary.ids[name] for name in names]
        self._end = next(iter([*vocabulary.suffix, *vocabulary.prefix]))  # what follows a document

    def __call__(self, slots: Slots) -> Inputs:
        """Return the sequences, and the id that follows each token as its target."""
        texts, offsets = texts_in(slots, self._vocabulary), slots.offsets.astype(np.int64)
        numbers = uniform(self._seed, Use.middles, slots.keys, np.diff(sequences_of(slots)), columns=4)
        kept = texts.lengths - MARKS
        rows = np.flatnonzero((numbers[:, 0] < self._config.rate) & (kept > 0))
        cuts = texts.begins[:, None] + np.sort((numbers[:, 2:] * (kept[:, None] + 1)).astype(np.int64), axis=1)

        begins, first, second = texts.begins[rows], cuts[rows, 0], cuts[rows, 1]
        ends = begins + kept[rows]
        suffix_first = numbers[rows, 1] < self._config.spm
        prefix_at, suffix_at, middle_at = (len(slots.tokens) + number for number in range(MARKS))
        parts = Parts(np.full(len(offsets) - 1, 8))
        at = parts.firsts
        parts.put(at, offsets[:-1], np.diff(offsets))  # those that stay as they are
        parts.put(at[rows], offsets[:-1][rows], begins - offsets[:-1][rows])
        parts.put(at[rows] + 1, prefix_at, 1)
        parts.put(at[rows] + 2, begins, np.where(suffix_first, 0, first - begins))
        parts.put(at[rows] + 3, suffix_at, 1)
        parts.put(at[rows] + 4, second, ends - second)
        parts.put(at[rows] + 5, middle_at, 1)
        parts.put(at[rows] + 6, np.where(suffix_first, begins, first), second - np.where(suffix_first, begins, first))
        parts.put(at[rows] + 7, texts.ends[rows], (offsets[1:] - texts.ends)[rows])
        tokens, _ = parts.joined(np.concatenate([slots.tokens, self._marks]))

        rewritten = np.zeros(len(offsets) - 1, dtype=bool)
        rewritten[rows] = True
        inside = rewritten.repeat(np.diff(offsets))
        inside[offsets[1:] - 1] = False
        targets = np.where(inside, np.append(tokens[1:], IGNORED), slots.following)
        open_ended = rewritten & (texts.ends == offsets[1:])  # without the ids after a document
        targets[offsets[1:][open_ended] - 1] = self._end
        return Inputs(tokens, targets, slots.offsets)
