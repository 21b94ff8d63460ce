"""Initial values of parameters: every tensor drawn by generators of its own, keyed by the seed and its name.

Holds the schemes and the drawing, not the models: a model says how each of its parameters begins.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements drawn by one generator, so that a part of a tensor costs what it holds


class Init(StrEnum):
    """Published schemes; all draw matrices from a normal distribution, with biases 0 and norm scales 1."""

    gpt2 = "gpt2"  # projections into the residual stream shrunk by 1/sqrt(2 L) (Radford et al. 2019)
    olmo2 = "olmo2"  # one standard deviation for all, steadier in Llama-like models (Walsh et al. 2024)


class Initial(NamedTuple):
    """How a tensor begins: normally distributed, or constant where `std` is 0."""

    mean: float = 0.0
    std: float = 0.0


def scheme(init: Init, name: str, *, ndim: int, std: float, residual: tuple[str, ...], layers: int) -> Initial:
    """Return how a parameter begins; names that end in one of `residual` are projections into the residual stream."""
    if ndim == 1:
        return Initial(mean=0.0 if name.endswith("bias") else 1.0)
    shrunk = init is Init.gpt2 and name.endswith(residual)
    return Initial(std=std / (2 * layers) ** 0.5 if shrunk else std)


def draw(initial: Initial, *, seed: int, name: str, start: int, numel: int, total: int) -> Tensor:
    """Return elements [start, start + numel) of a flattened tensor of `total` elements, (numel,) fp32 on the CPU.

    Values depend on the seed, the name and the place alone: they are the same on any device, on any rank, and whichever
    part of the tensor a rank holds.
    """
    values = torch.full((numel,), initial.mean)
    if not initial.std:
        return values
    for chunk in range(start // CHUNK, -(-(start + numel) // CHUNK)):
        first = chunk * CHUNK
        size = min(CHUNK, total - first)
        low, high = max(start, first), min(start + numel, first + size)
        drawn = torch.empty(size).normal_(initial.mean, initial.std, generator=_generator(seed, name, chunk))
        values[low - start : high - start] = drawn[low - first : high - first]
    return values


def _generator(seed: int, name: str, chunk: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{chunk}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
