"""Rotary positions (RoPE, Su et al. 2021): angles by which pairs of coordinates of queries and keys are rotated.

Holds the frequencies, how they are scaled for longer texts, and the rotation; which layers use which is in `network`.
Letters of shapes: `models/base.py`, and R coordinates of a head that are rotated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from pretrain.errors import check

Rotary = tuple[Tensor, Tensor]  # cosines and sines of the rotation angles, (N, 1, R/2) fp32 each


class Scaling(StrEnum):
    """How frequencies change so that a network reads longer texts than it was trained on."""

    none = "none"  # they do not
    linear = "linear"  # all are divided by the factor (Chen et al. 2023, position interpolation)
    llama3 = "llama3"  # the slow ones are divided, between slow and fast by their turns (Llama 3.1, Grattafiori 2024)
    yarn = "yarn"  # the same between coordinates, and the vectors grow (Peng et al. 2023, "YaRN")


_FAST_TURNS = {Scaling.llama3: 4.0, Scaling.yarn: 32.0}


@dataclass(kw_only=True)
class RopeScaling:
    """`model.rope_scaling`: rotary frequencies of a network that reads longer texts than it was first trained on."""

    kind: Scaling = Scaling.none  # none, linear, llama3 or yarn
    factor: float = 1.0  # how many times longer texts become
    original_length: int | None = None  # tokens of the texts before, for llama3 and yarn
    slow_turns: float = 1.0  # frequencies with fewer turns in that length are divided (low_freq_factor, beta_slow)
    fast_turns: float | None = None  # those with more stay (high_freq_factor, beta_fast); null: llama3 4, yarn 32
    truncate: bool = True  # yarn: limits of slow and fast are rounded to whole pairs of coordinates
    attention_factor: float | None = None  # yarn: multiplies queries and keys; null: 0.1 ln(factor) + 1

    def __post_init__(self) -> None:
        kind, key = self.kind, "model.rope_scaling"
        check(1 <= self.factor < math.inf, f"{key}.factor", self.factor, "must be at least 1, and finite")
        rule = f"scales nothing with {key}.kind=none; choose a kind, or set the factor to 1"
        check(kind is not Scaling.none or self.factor == 1, f"{key}.factor", self.factor, rule)
        rule = f"needs the tokens of the texts before; set {key}.original_length"
        turns = kind in _FAST_TURNS
        check(not turns or self.original_length is not None, f"{key}.kind", kind.value, rule)
        length = self.original_length
        check(length is None or length >= 1, f"{key}.original_length", length, "must be at least 1")
        check(self.slow_turns > 0, f"{key}.slow_turns", self.slow_turns, "must be positive")
        rule = f"must be above {key}.slow_turns={self.slow_turns}"
        check(not turns or self.turns[1] > self.slow_turns, f"{key}.fast_turns", self.fast_turns, rule)
        grown = self.attention_factor
        check(grown is None or 0 < grown < math.inf, f"{key}.attention_factor", grown, "must be positive, and finite")

    def short(self) -> RopeScaling:
        """Return the same scaling with what it does not use, and what is the default of its kind, left to it."""
        if self.kind not in _FAST_TURNS:
            return RopeScaling(kind=self.kind, factor=self.factor)
        own = {"fast_turns": None if self.fast_turns == _FAST_TURNS[self.kind] else self.fast_turns}
        if self.kind is not Scaling.yarn or self.magnitude == replace(self, attention_factor=None).magnitude:
            own["attention_factor"] = None
        return replace(self, **own, truncate=self.truncate or self.kind is not Scaling.yarn)

    @property
    def turns(self) -> tuple[float, float]:
        """The turns in the original length of what counts as slow, and as fast."""
        return self.slow_turns, _FAST_TURNS.get(self.kind, math.inf) if self.fast_turns is None else self.fast_turns

    @property
    def magnitude(self) -> float:
        """What queries and keys are multiplied by."""
        if self.kind is not Scaling.yarn:
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def apply(self, frequencies: Tensor, theta: float) -> Tensor:
        """Return the scaled frequencies (R/2,) of those that `theta` gives, in radians a token."""
        if self.kind is Scaling.none:
            return frequencies
        slow = self._slowness(frequencies, theta)
        return frequencies * (1 - slow) + frequencies / self.factor * slow

    def _slowness(self, frequencies: Tensor, theta: float) -> Tensor:
        """Return how much each frequency counts as slow, (R/2,) or (): 1 is divided by the factor, 0 stays."""
        if self.kind is Scaling.linear:
            return torch.ones_like(frequencies)
        assert self.original_length is not None
        low, high = self.turns
        if self.kind is Scaling.llama3:
            turns = frequencies * self.original_length / (2 * math.pi)
            return ((high - turns) / (high - low)).clamp(0, 1)
        pairs = len(frequencies)
        # The pair i with n turns in the original length: theta^(-i / pairs) * length = 2 pi n.
        first, last = (
            pairs * math.log(self.original_length / (2 * math.pi * n)) / math.log(theta) for n in (high, low)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        place = torch.arange(pairs, device=frequencies.device, dtype=torch.float32)
        return ((place - first) / (last - first or 0.001)).clamp(0, 1)


NO_SCALING = RopeScaling()


def rotary(positions: Tensor, width: int, theta: float, scaling: RopeScaling = NO_SCALING) -> Rotary:
    """Return cosines and sines of the rotation at each position, (N, 1, R/2), of R = `width` coordinates of a head."""
    angles = positions[:, None, None] * scaling.apply(frequencies(width, theta, positions.device), theta)
    cos, sin, magnitude = angles.cos(), angles.sin(), scaling.magnitude
    return (cos, sin) if magnitude == 1 else (cos * magnitude, sin * magnitude)


def frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    """Return theta^(-2i / width) for i < width / 2, in fp32; no buffer, which casting the model would round."""
    return theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


def rotate(x: Tensor, tables: Rotary) -> Tensor:
    """Rotate the pairs (i, i + R/2) of x (N, heads, E) by their position's angle, in fp32; Llama's pairing.

    Coordinates from R on stay as they are (partial rotary positions, GPT-NeoX).
    """
    cos, sin = tables
    rotated = 2 * cos.shape[-1]
    left, right = x[..., :rotated].chunk(2, dim=-1)
    turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
    return turned if rotated == x.shape[-1] else torch.cat([turned, x[..., rotated:]], dim=-1)
