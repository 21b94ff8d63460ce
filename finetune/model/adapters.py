"""Adapters as they go out to peft and come in from it: one for each module of a family's checkpoints.

Holds what a module's adapter is in ours, both ways. Where a family has several projections in one module, peft has one
A for all of them: coming in each gets that A, and going out theirs are put side by side, at a higher rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.model.heads import HEAD
from finetune.model.lora import DOWN, UP, LoraConfig, LoraLinear, Part
from pretrain.checkpoint.low_rank import LowRank
from pretrain.hub.adapter_files import DOWN as A
from pretrain.hub.adapter_files import PREFIX, ends_of
from pretrain.hub.adapter_files import UP as B
from pretrain.hub.family import HFTensor


class Exported(NamedTuple):
    """An adapter as peft reads it."""

    config: dict[str, Any]  # of adapter_config.json, as far as it follows from the adapters
    tensors: list[HFTensor]  # of its file; `ours` are names in `own` and, of heads, in a step
    own: dict[str, Tensor]


def exported(tuning: LoraConfig, differences: Mapping[str, Sequence[LowRank]], tensors: Sequence[HFTensor]) -> Exported:
    """Return the adapter of a model with such `differences`, whose `tensors` are those of a class in `transformers`.

    Those of a head of ours are saved whole.
    """
    adapted = {_module(tensor): each for tensor, each in _adapters(differences, tensors)}
    heads = [tensor for tensor in tensors if tensor.ours.startswith(HEAD)]
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    ends = ends_of({_module(tensor): _module(tensor) in adapted for tensor in matrices})
    higher = {ends[name]: len(each.down) for name, each in adapted.items() if len(each.down) != tuning.rank}
    own = {}
    for name, each in adapted.items():
        own[PREFIX + name + A] = each.down
        own[PREFIX + name + B] = each.up
    bodies = {name.partition(".")[0] for name in adapted}
    config = {
        "r": tuning.rank,
        "lora_alpha": _number(tuning.alpha),
        "lora_dropout": tuning.dropout,
        "target_modules": [*dict.fromkeys(ends.values())],
        "rank_pattern": higher,
        "alpha_pattern": {name: _number(tuning.scale * rank) for name, rank in higher.items()},
        "fan_in_fan_out": any(tensor.transposed for tensor in tensors),
        "modules_to_save": [*dict.fromkeys(_saved(_module(tensor), bodies) for tensor in heads)] or None,
    }
    parts = [HFTensor(name, name, tuple(tensor.shape)) for name, tensor in own.items()]
    return Exported(config, [*parts, *(head._replace(theirs=PREFIX + head.theirs) for head in heads)], own)


def _number(value: float) -> float:
    """Return a number as peft writes it, whose own are whole."""
    return int(value) if value.is_integer() else value


def _module(tensor: HFTensor) -> str:
    return tensor.theirs.rpartition(".")[0]


def _saved(module: str, bodies: set[str]) -> str:
    """Return what is saved whole with a module of a head: of a head in several layers all, outside of the body."""
    first = module.partition(".")[0]
    return module if first in bodies else first


def _adapters(
    differences: Mapping[str, Sequence[LowRank]], tensors: Sequence[HFTensor]
) -> Iterator[tuple[HFTensor, LowRank]]:
    """Yield each tensor that has an adapter with what is added to all of its rows, which B has in their order."""
    for tensor in tensors:
        end = tensor.row + tensor.shape[0]
        own = [each for each in differences.get(tensor.ours, ()) if tensor.row < each.end and each.row < end]
        if own:
            each = _side_by_side(own, tensor.row, end)
            rows = [each.up[run.ours - tensor.row :][: run.rows] for run in tensor.runs()]
            yield tensor, each._replace(up=torch.cat(rows))


def _side_by_side(own: list[LowRank], row: int, end: int) -> LowRank:
    """Return what differences add to rows [row, end) as one: each in its own columns of B, which is 0 elsewhere."""
    rank = len(own[0].down)
    up = torch.zeros(end - row, len(own) * rank)
    for number, each in enumerate(own):
        low, high = max(row, each.row), min(end, each.end)
        up[low - row : high - row, number * rank : (number + 1) * rank] = each.up[low - each.row : high - each.row]
    return LowRank(row, up, torch.cat([each.down for each in own]), own[0].scale)


def taken_over(
    adapters: Mapping[str, LoraLinear], differences: Mapping[str, Sequence[LowRank]]
) -> dict[str, Tensor] | str:
    """Return the tensors with which `adapters` compute the `differences`, or else, in words, why they do not.

    They learn on as they are where layers, ranks and scales are the same.
    """
    if other := [name for name in differences if name.removesuffix("weight") not in adapters]:
        return f"tuning.layers leaves out {other[0]}"
    tensors: dict[str, Tensor] = {}
    for name, layer in adapters.items():
        own = differences.get(f"{name}weight", [])
        changed = torch.zeros(layer.out_features, dtype=torch.bool)
        for each in own:
            changed[each.row : each.end] |= each.up.any(1)
        for part in layer.adapted:
            changed[part.row : part.end] = False
        if changed.any():
            return f"tuning.layers leaves out a part of {name}weight"
        found = [_of_part(part, layer, own) for part in layer.adapted]
        for each in found:
            if isinstance(each, str):
                return f"that of {name}weight {each}"
        tensors[name + DOWN] = torch.cat([each.down for each in found if isinstance(each, LowRank)])
        tensors[name + UP] = torch.cat([each.up for each in found if isinstance(each, LowRank)])
    return tensors


def _of_part(part: Part, layer: LoraLinear, own: Sequence[LowRank]) -> LowRank | str:
    """Return the difference of a part as its adapter has it, or why it cannot have it."""
    covering = [each for each in own if each.row <= part.row and part.end <= each.end]
    if len(covering) != 1:
        return f"has no {part.name}"
    [each] = covering
    if not math.isclose(each.scale, layer.scale, rel_tol=1e-6):
        return f"is scaled by {each.scale:g}, and tuning.alpha / tuning.rank is {layer.scale:g}"
    up, rank = each.up[part.row - each.row : part.end - each.row], layer.rank
    if len(each.down) == rank:
        return LowRank(part.row, up, each.down, each.scale)
    together = [other for other in layer.adapted if each.row <= other.row and other.end <= each.end]
    begin = together.index(part) * rank  # of its columns, where they were put side by side
    if len(each.down) == len(together) * rank and not up[:, :begin].any() and not up[:, begin + rank :].any():
        return LowRank(part.row, up[:, begin : begin + rank], each.down[begin : begin + rank], each.scale)
    return f"has rank {len(each.down)}, and tuning.rank is {rank}"
