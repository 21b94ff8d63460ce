"""How a token is drawn from logits: the likeliest one, or by a number in [0, 1) from those that filters leave.

Holds no model: the loop over tokens is in `generate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor

from pretrain.errors import check


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a token is drawn from logits. Raises `ValueError` for a setting out of range."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # only the k likeliest tokens are drawn
    top_p: float | None = None  # only the likeliest tokens of this probability together (Holtzman et al. 2020)
    min_p: float | None = None  # only tokens of this share of the likeliest one's probability (Nguyen et al. 2024)
    seed: int = 1  # the same seed draws the same tokens

    def __post_init__(self) -> None:
        rule = "must not be negative, and finite; 0 is greedy"
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, rule)
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            check(share is None or 0 < share <= 1, name, share, "must lie in (0, 1]")

    def numbers(self, stream: int, count: int) -> np.ndarray:
        """Return the numbers in [0, 1), (count,), that the tokens of one text are drawn by, a stream for each text."""
        return Generator(Philox(key=np.array([self.seed % 2**64, stream], dtype=np.uint64))).random(count)

    def __call__(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Return one token id a row, (S,) int64, for logits (S, V) fp32, by numbers in [0, 1), (S,) fp64."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        # The likeliest becomes 0, so that no temperature makes it more than a float holds; fp32 would take 1e-50 for 0.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(self.temperature, torch.finfo(torch.float32).tiny)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], float("-inf"))
        if self.top_p is not None:
            probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
            # A token stays if those before it do not reach p yet, so that the first one always does.
            beyond = probabilities.cumsum(dim=-1) - probabilities >= self.top_p
            logits = logits.masked_fill(beyond.scatter(1, order, beyond), float("-inf"))
        if self.min_p is not None:
            least = logits.amax(dim=-1, keepdim=True) + math.log(self.min_p)
            logits = logits.masked_fill(logits < least, float("-inf"))
        # Where the cumulated probability passes the number: so a row depends on nothing but itself.
        cumulated = logits.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(cumulated, numbers[:, None] * cumulated[:, -1:], right=True)
        return drawn.squeeze(1).clamp(max=logits.shape[-1] - 1)
