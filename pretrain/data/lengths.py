"""How long the sequences are that tokens lie in, which is what attention costs.

Holds the summary of many lengths; what a length costs a model is the model's to say.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GROUPS = 16  # of lengths, with about as many tokens each


class Share(NamedTuple):
    """The sequences of about one length."""

    length: float  # tokens; of an average token in these sequences
    share: float  # of all tokens that lie in them, 0 to 1


def shares_of(lengths: np.ndarray) -> list[Share]:
    """Return the shares of all tokens by the lengths (S,) of their sequences, from short to long.

    A token's cost of full attention grows with the length of its sequence: the mean over tokens is that of the squared
    lengths over that of the lengths, which these shares keep exactly. With a window the cost stops growing, which the
    mean length of all sequences would not show.
    """
    ordered = np.sort(lengths).astype(np.float64)
    ends = ordered.cumsum()
    group = ((ends - ordered / 2) * GROUPS / ends[-1]).astype(np.int64)
    tokens, squares = np.bincount(group, ordered), np.bincount(group, ordered**2)
    rows = zip(tokens.tolist(), squares.tolist(), strict=True)
    return [Share(square / token, token / float(ends[-1])) for token, square in rows if token]
