"""Prefix language modelling: predict the end of a text, token after token, from its beginning.

Holds the objective and its dataclass; the module and its loss are those of `causal_lm`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretrain.data.batch import IGNORED, Examples, Inputs, Slots, Vocabulary
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.draws import Use, uniform
from pretrain.objectives.ranges import sequences_of
from pretrain.registry import register


@register("objective", "prefix_lm")
@dataclass(kw_only=True)
class PrefixLMConfig(CausalLMConfig):
    """`objective=prefix_lm`: a decoder predicts the rest of a sequence from a prefix, which has no targets.

    Each sequence is split in two where a draw says, every place between two tokens being as likely; the tokens of the
    first part are no targets. So a model is trained on what it is used for, to continue what it is given, at the price
    of half the targets of `causal_lm`. Attention stays causal inside the prefix, too: a prefix that sees all of itself
    (Raffel et al. 2020, section 3.2) needs a mask that attention here does not have. For that there is
    `objective=span_corruption` with `mean_span: null`, whose encoder sees all of a prefix.

    There are no bits per byte: the tokens of prefixes are no target.
    """

    covers_text = False

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function that takes the targets of each sequence's prefix away; see `ObjectiveConfig`."""

        def examples(slots: Slots) -> Inputs:
            lengths = np.diff(slots.offsets).astype(np.int64)
            numbers = uniform(seed, Use.prefixes, slots.keys, np.diff(sequences_of(slots)), columns=1)[:, 0]
            prefixes = 1 + (numbers * (lengths - 1)).astype(np.int64)  # tokens; the last of them predicts the rest
            place = np.arange(len(slots.tokens)) - slots.offsets[:-1].astype(np.int64).repeat(lengths)
            targets = np.where(place >= (prefixes - 1).repeat(lengths), slots.following, IGNORED)
            return Inputs(slots.tokens, targets, slots.offsets)

        return examples
