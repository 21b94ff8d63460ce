"""What a model's texts must begin and end with and what they never hold, however their tokens are chosen.

Holds the restriction of scores; where a model's rules are written is known to `pretrain.hub.generation_config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

IMPOSSIBLE = float("-inf")  # the score of what may not be chosen


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of a model; without any every token may be chosen everywhere."""

    first: int | None = None  # the id that every text begins with; None: any
    last: int | None = None  # the id that a text ends with where it has no room for more; None: any
    banned: tuple[int, ...] = ()  # ids that are chosen only where they must be
    ends: tuple[int, ...] = ()  # ids that end a text, beside what its tokenizer puts behind one; who writes stops there

    def restrict(self, scores: Tensor, *, place: int, full: Sequence[int] = ()) -> None:
        """Make impossible, in place, what may not stand at a `place` of texts, counted from 0 behind their prompts.

        `scores` (S, V) are logits or log-probabilities, and `full` the rows whose texts end at this place.
        """
        if self.banned:
            scores[:, list(self.banned)] = IMPOSSIBLE
        if self.first is not None and place == 0:
            _force(scores, range(len(scores)), self.first)
        if self.last is not None and full:
            _force(scores, full, self.last)


NO_RULES = Rules()


def _force(scores: Tensor, rows: Sequence[int], token: int) -> None:
    scores[list(rows)] = IMPOSSIBLE
    scores[list(rows), token] = 0.0
