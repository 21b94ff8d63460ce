"""Low-rank adapters (Hu et al. 2021, LoRA): matrices stay as they came, and learn a difference of few parameters.

Holds the layer, its configuration, and the sum of both for who wants one matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.models.init import Initial
from pretrain.registry import register

DOWN, UP = "lora_a", "lora_b"  # the matrices A and B of the paper


class LoraLinear(nn.Linear):
    """A frozen linear layer with an adapter: y = W x + b + scale B A dropout(x) (Hu et al. 2021, section 4.1)."""

    def __init__(self, base: nn.Linear, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(self.out_features, rank))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output (..., out_features) for its input (..., in_features)."""
        difference = functional.linear(functional.linear(self.dropout(input), self.lora_a), self.lora_b)
        return super().forward(input) + self.scale * difference


@register("tuning", "lora")
@dataclass(kw_only=True)
class LoraConfig:
    """The head learns, and adapters of the linear layers of all blocks; an export adds them to their matrices."""

    rank: int = 8  # of the difference that a matrix learns
    alpha: float = 16.0  # the difference is multiplied by alpha / rank
    dropout: float = 0.0  # probability, of what an adapter reads
    layers: list[str] | None = None  # of a block, that get adapters: qkv, out, up, down, q, kv; null: all it has

    def __post_init__(self) -> None:
        check(self.rank >= 1, "tuning.rank", self.rank, "must be at least 1; 8 and 16 are usual")
        rule = "must be above 0, and finite; one or two times the rank is usual"
        check(0 < self.alpha < math.inf, "tuning.alpha", self.alpha, rule)
        check(0 <= self.dropout < 1, "tuning.dropout", self.dropout, "must lie in [0, 1)")
        check(self.layers != [], "tuning.layers", self.layers, "name one at least, or set tuning=frozen")

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        return self.alpha / self.rank

    def prepare(self, model: Model) -> None:
        """See `TuningConfig`. Raises `ConfigError` for a layer that no block has."""
        model.requires_grad_(False)
        linear = [
            (module, name, layer)
            for module in model.blocks.modules()
            for name, layer in module.named_children()
            if isinstance(layer, nn.Linear)
        ]
        known = list(dict.fromkeys(name for _, name, _ in linear))
        chosen = known if self.layers is None else self.layers
        for wanted in chosen:
            rule = f"the model's blocks have no such layer; choose among {', '.join(known)}"
            check(wanted in known, "tuning.layers", wanted, rule)
        for module, name, layer in linear:
            if name in chosen:
                setattr(module, name, LoraLinear(layer, rank=self.rank, scale=self.scale, dropout=self.dropout))

    def merged(self, weights: FragmentReader) -> Merged:
        """See `TuningConfig`."""
        return Merged(weights, self.scale)


def is_adapter(name: str) -> bool:
    """Return whether a tensor is one of an adapter."""
    return name.endswith((DOWN, UP))


def initial_of_adapter(name: str, parameter: Tensor) -> Initial | None:
    """Return how an adapter's matrix begins, None for another tensor: A is drawn, B is zero, so that nothing changes.

    A's deviation is that of torch's linear layers, 1 / sqrt(3 in_features).
    """
    if name.endswith(DOWN):
        return Initial(std=(3 * parameter.shape[1]) ** -0.5)
    return Initial() if name.endswith(UP) else None


class Merged:
    """The weights of a step with the adapters added to their matrices; see `Reader` in `strategy.base`."""

    def __init__(self, weights: FragmentReader, scale: float) -> None:
        self.weights = weights
        self.shapes = weights.weight_shapes()
        self.scale = scale

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Return the shape of every weight and buffer by name, adapters apart."""
        return {name: shape for name, shape in self.shapes.items() if not is_adapter(name)}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self.shapes[name]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        values = self.weights(name, kind, start, numel)
        layer = name.removesuffix("weight")
        if layer + UP not in self.shapes:
            return values
        rank, columns = self.shapes[layer + DOWN]
        first, last = start // columns, -(-(start + numel) // columns)
        down = self.weights(layer + DOWN, WEIGHT, 0, rank * columns).view(rank, columns)
        up = self.weights(layer + UP, WEIGHT, first * rank, (last - first) * rank).view(-1, rank)
        difference = torch.mm(up, down).reshape(-1)[start - first * columns :][:numel]
        return values + self.scale * difference
