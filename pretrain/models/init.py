"""Initial values of parameters: every tensor drawn by generators of its own, keyed by the seed and its name.

Holds the schemes and the drawing, not the models: a model names the distribution of each of its parameters.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.init import trunc_normal_

CHUNK = 1 << 20  # elements drawn by one generator, so that a part of a tensor costs what it holds


class Init(StrEnum):
    """Published schemes; all draw matrices from a normal distribution, with biases 0 and norm scales 1."""

    gpt2 = "gpt2"  # projections into the residual stream shrunk by 1/sqrt(2 L) (Radford et al. 2019)
    olmo2 = "olmo2"  # one standard deviation for all, steadier in Llama-like models (Walsh et al. 2024)
    bert = "bert"  # one standard deviation for all, nothing beyond two of them (Devlin et al. 2019)
    modernbert = "modernbert"  # shrunk like gpt2's, nothing beyond two deviations (Warner et al. 2024)
    transformer = "transformer"  # by the widths of each matrix (Glorot and Bengio 2010), embeddings 1/sqrt(D)
    t5 = "t5"  # by what each matrix reads, queries smaller still, for scores that are not scaled (Raffel et al. 2020)

    @property
    def shrinks_residual(self) -> bool:
        """Whether projections into the residual stream have a smaller deviation the more layers there are."""
        return self in (Init.gpt2, Init.modernbert)

    @property
    def cuts(self) -> bool:
        """Whether values beyond two standard deviations are drawn again."""
        return self in (Init.bert, Init.modernbert)


class Initial(NamedTuple):
    """The distribution of a tensor's initial values: normal, or constant where `std` is 0."""

    mean: float = 0.0
    std: float = 0.0
    cut: bool = False  # draw anew what lies more than two standard deviations from the mean
    first: tuple[int, float] | None = None  # so many of the first elements have this deviation instead


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
        drawn = _normal(initial, size, _generator(seed, name, chunk))
        values[low - start : high - start] = drawn[low - first : high - first]
    if initial.first is not None:
        count, std = initial.first
        values[: max(count - start, 0)] *= std / initial.std  # of mean 0
    return values


def _normal(initial: Initial, size: int, generator: torch.Generator) -> Tensor:
    mean, std, cut, _ = initial
    if not cut:
        return torch.empty(size).normal_(mean, std, generator=generator)
    return trunc_normal_(torch.empty(size), mean, std, mean - 2 * std, mean + 2 * std, generator=generator)


def _generator(seed: int, name: str, chunk: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{chunk}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
