"""Initial weights: every tensor drawn by its own generator, keyed by the seed and the tensor's name.

Holds the schemes, not the models: a model says which of its projections end in the residual stream.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import torch
from torch import nn


class Init(StrEnum):
    """Published schemes; all draw matrices from a normal distribution, with biases 0 and norm scales 1."""

    gpt2 = "gpt2"  # projections into the residual stream shrunk by 1/sqrt(2 L) (Radford et al. 2019)
    olmo2 = "olmo2"  # one standard deviation for all, steadier in Llama-like models (Walsh et al. 2024)


@torch.no_grad()
def initialise(
    model: nn.Module, *, seed: int, scheme: Init, std: float, residual: tuple[str, ...], layers: int
) -> None:
    """Fill all parameters of `model`; names that end in one of `residual` are projections into the residual stream.

    Values are drawn on the CPU, so that they are the same on every device, in any order and on any rank.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        shrunk = scheme is Init.gpt2 and name.endswith(residual)
        scale = std / (2 * layers) ** 0.5 if shrunk else std
        values = torch.empty(parameter.shape, device="cpu").normal_(0.0, scale, generator=_generator(seed, name))
        parameter.copy_(values)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
