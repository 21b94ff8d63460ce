"""Low-rank adapters (Hu et al. 2021, LoRA): matrices stay as they came, and learn a difference of few parameters.

Holds the layer, its configuration, and the differences that a step has learnt; `adapters` knows them as peft does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.checkpoint.base import WEIGHT, Reader
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import Shapes
from pretrain.checkpoint.low_rank import LowRank, Summed
from pretrain.errors import CheckpointError, check
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Model
from pretrain.models.init import Initial
from pretrain.models.layers import Fused
from pretrain.registry import register

DOWN, UP = "lora_a", "lora_b"  # the matrices A and B of the paper


class Part(NamedTuple):
    """A projection whose rows are some of a layer's matrix, or all."""

    name: str
    row: int  # the first of them
    rows: int

    @property
    def end(self) -> int:
        """The row after the last of them."""
        return self.row + self.rows


class LoraLinear(nn.Linear):
    """A frozen linear layer with an adapter for each of its parts, or for some.

    y_p = W_p x + b_p + scale B_p A_p dropout(x) (Hu et al. 2021, section 4.1); all read what one draw of dropout left.
    """

    def __init__(self, base: nn.Linear, adapted: list[Part], *, rank: int, scale: float, dropout: float) -> None:
        """`adapted` are those of `parts_of(base)` that get an adapter, in their order."""
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.adapted, self.rank, self.scale = adapted, rank, scale
        parts = parts_of(base, "")
        self._rows = [part.rows for part in parts]
        self._places = [[part.row for part in parts].index(part.row) for part in adapted]
        self.lora_a = nn.Parameter(base.weight.new_empty(len(adapted) * rank, self.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(sum(part.rows for part in adapted), rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output (..., out_features) for its input (..., in_features)."""
        pieces = list(super().forward(input).split(self._rows, dim=-1))
        read = functional.linear(self.dropout(input), self.lora_a).split(self.rank, dim=-1)
        ups = self.lora_b.split([part.rows for part in self.adapted])
        for place, down, up in zip(self._places, read, ups, strict=True):
            pieces[place] = pieces[place] + self.scale * functional.linear(down, up)
        return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]


def parts_of(layer: nn.Linear, name: str) -> list[Part]:
    """Return the projections whose rows a layer's matrix has: those that it fuses, or itself, called `name`."""
    fused = layer.parts if isinstance(layer, Fused) else {name: layer.out_features}
    parts, row = [], 0
    for part, rows in fused.items():
        parts.append(Part(part, row, rows))
        row += rows
    return parts


@register("tuning", "lora")
@dataclass(kw_only=True)
class LoraConfig:
    """The head learns, and adapters of the linear layers of all blocks; an export adds them to their matrices."""

    rank: int = 8  # of the difference that a matrix learns
    alpha: float = 16.0  # the difference is multiplied by alpha / rank
    dropout: float = 0.0  # probability, of what an adapter reads
    layers: list[str] | None = None  # that get adapters: q, k, v (qkv: all three), out, gate, up, down; null: all

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
            (module, name, layer, parts_of(layer, name))
            for module in model.blocks.modules()
            for name, layer in module.named_children()
            if isinstance(layer, nn.Linear)
        ]
        names = [name for _, name, _, _ in linear] + [part.name for *_, parts in linear for part in parts]
        known = list(dict.fromkeys(names))
        for wanted in self.layers or ():
            rule = f"the model's blocks have no such layer; choose among {', '.join(known)}"
            check(wanted in known, "tuning.layers", wanted, rule)
        for module, name, layer, parts in linear:
            if adapted := self._adapted(name, parts):
                new = LoraLinear(layer, adapted, rank=self.rank, scale=self.scale, dropout=self.dropout)
                setattr(module, name, new)

    def merged(self, weights: FragmentReader, network: Any) -> Summed:
        """See `TuningConfig`. Raises `CheckpointError` for adapters of other shapes."""
        with torch.device("meta"):
            model = network.build(vocab_size=1, attend=sdpa, head=False)
            self.prepare(model)
        adapters = adapters_of(model)
        check_adapters(weights.weight_shapes(), adapters, str(weights.step))
        return _Merged(weights, differences_of(adapters, weights))

    def _adapted(self, name: str, parts: list[Part]) -> list[Part]:
        """Return the parts of a layer that get adapters; a name that both have means the part."""
        if self.layers is None or (name in self.layers and name not in [part.name for part in parts]):
            return parts
        return [part for part in parts if part.name in (self.layers or ())]


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


def adapters_of(model: Model) -> dict[str, LoraLinear]:
    """Return a model's layers with adapters by the beginnings of their tensors' names, as an objective has them."""
    return {f"model.{name}.": layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def check_adapters(stored: Shapes, adapters: Mapping[str, LoraLinear], where: str) -> None:
    """Raise `CheckpointError` for a step in which fused projections shared one adapter, as they once did."""
    for name, layer in adapters.items():
        found, wanted = stored.get(name + DOWN), layer.lora_a.shape
        if found is not None and found[0] == layer.rank < wanted[0]:
            rule = f"{name}{DOWN} is one adapter for {', '.join(part.name for part in layer.adapted)}, which now have"
            fix = "export it with the version that trained it, and start from the export (init_from)"
            raise CheckpointError(f"{where}: {rule} one each; {fix}, or train it again")


def differences_of(adapters: Mapping[str, LoraLinear], read: Reader) -> dict[str, list[LowRank]]:
    """Return what the adapters of a step add to the matrices of a model, by the names of these."""
    return {f"{name}weight": list(_learnt(name, layer, read)) for name, layer in adapters.items()}


def _learnt(name: str, layer: LoraLinear, read: Reader) -> Iterator[LowRank]:
    """Yield the difference of each part of a layer that has an adapter."""
    downs, ups = (
        read(name + kind, WEIGHT, 0, shape.numel()).view(shape)
        for kind, shape in ((DOWN, layer.lora_a.shape), (UP, layer.lora_b.shape))
    )
    rows = [part.rows for part in layer.adapted]
    for part, down, up in zip(layer.adapted, downs.split(layer.rank), ups.split(rows), strict=True):
        yield LowRank(part.row, up, down, layer.scale)


class _Merged(Summed):
    """The weights of a step with its adapters added to their matrices, and none of their own tensors."""

    def weight_shapes(self) -> Shapes:
        """Return the shape of every weight and buffer by name, adapters apart."""
        return {name: shape for name, shape in super().weight_shapes().items() if not is_adapter(name)}
