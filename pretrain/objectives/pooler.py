"""BERT's pooler: what its classifiers of whole sequences see.

Holds the layer; which objective has one is the objective's own. It is no part of the model, whose parameters all take
part in every objective.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pooler(nn.Module):
    """The first token's hidden state through a layer of its own (Devlin et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        """Map the hidden states of the first tokens of sequences (S, D) to (S, D)."""
        return torch.tanh(self.dense(first))
