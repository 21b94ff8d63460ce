"""muP, the maximal update parametrization (Yang et al. 2022, arXiv 2203.03466): settings that serve all widths.

Holds the factors, which follow from widths alone. The model applies those of its forward pass and of its first weights,
optimizers that of learning rates, exports take the former into the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WidthScaling:
    """What a model multiplies so that it learns as the same model of the base width does (table 8 there, for Adam).

    Without muP, and at the base width, all factors are 1, and nothing is multiplied.
    """

    width: float = 1.0  # the base width over the width of the residual stream, D_base / D
    head_width: float = 1.0  # the same for one head, E_base / E

    @property
    def init(self) -> float:
        """Of the standard deviation of matrices in blocks, which read vectors that widen: sqrt(D_base / D)."""
        return math.sqrt(self.width)

    @property
    def output(self) -> float:
        """Of what the vocabulary projection reads, and so of the logits: D_base / D."""
        return self.width

    @property
    def scores(self) -> float:
        """Of queries times keys, beside 1 / sqrt(E): sqrt(E_base / E).

        Together sqrt(E_base) / E: queries and keys that have learnt are aligned, so their product grows with E, not
        with its root (section 2 and definition 4.1 there).
        """
        return math.sqrt(self.head_width)

    @property
    def lr(self) -> float:
        """Of Adam's learning rate for matrices in blocks: D_base / D. Embeddings, heads and vectors keep theirs."""
        return self.width

    @property
    def lr_orthogonal(self) -> float:
        """The same for updates that are orthogonal matrices, scaled to the size of Adam's: sqrt(D_base / D).

        Their largest singular value, 0.2 sqrt(max(R, C)), grows with the root of the width; it has to stay as it is
        (Yang et al. 2023, arXiv 2310.17813, condition 1).
        """
        return math.sqrt(self.width)


UNSCALED = WidthScaling()
