"""Initial weights, read as if from a checkpoint: any run of any tensor, so that each rank draws what it holds.

Holds the reader only; the drawing is in `models/initialise`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT
from pretrain.models.base import named_tensors
from pretrain.models.init import draw
from pretrain.objectives.base import Objective


class InitialWeights:
    """The first values of a module's tensors, without moments; see `Reader` in `strategy.base`."""

    def __init__(self, module: Objective, seed: int) -> None:
        """Note shapes and schemes, while the module has its whole shapes: before a strategy takes it over."""
        self._tensors = {name: (tensor.shape, module.initial(name)) for name, tensor in named_tensors(module)}
        self._seed = seed

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The whole shape of every tensor, by name."""
        return {name: shape for name, (shape, _) in self._tensors.items()}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._tensors[name][0]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        shape, initial = self._tensors[name]
        return draw(initial, seed=self._seed, name=name, start=start, numel=numel, total=shape.numel())
