"""Adapters as PEFT keeps them, in `adapter_model.safetensors`: where their tensors lie in our matrices.

Holds names and shapes; settings are in `adapter_config`, what becomes of a difference is its reader's matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pretrain.checkpoint.fragments import OpenFiles
from pretrain.checkpoint.load import first_few
from pretrain.checkpoint.low_rank import LowRank
from pretrain.errors import CheckpointError
from pretrain.hub.adapter_config import ADAPTER_CONFIG, AdapterConfig
from pretrain.hub.family import Family, HFTensor
from pretrain.hub.task_heads import HeadKind

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # begins every name there
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # end the names of the matrices A and B
_FIX = "fetch or write it again"
_MERGE = "merge it there (`merge_and_unload` and `save_pretrained`)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """What an adapter adds to a model, under our names."""

    differences: dict[str, list[LowRank]] = field(default_factory=dict)  # of matrices
    own: dict[str, Tensor] = field(default_factory=dict)  # whole tensors of heads, which it was trained with


class Places:
    """Where the modules of a family's checkpoints lie in a model of ours, however a class of theirs calls them."""

    def __init__(self, family: Family, config: Any, vocab_size: int) -> None:
        self.family = family
        heads = [head for kind in HeadKind if (head := family.heads.of(kind))]
        self._prefixes = [family.tensors.prefix, *(head.prefix for head in heads if head.prefix), ""]
        self._heads = {name.partition(".")[0] for head in heads for name in head.names.values()}
        self._heads -= {family.tensors.prefix.partition(".")[0]}
        parts = list(family.model_tensors(config, vocab_size, "model."))
        self._parts = {part.theirs: part for part in parts}
        self._linear = {
            part.theirs.removesuffix(".weight"): part
            for part in parts
            if part.theirs.endswith(".weight") and len(part.shape) == 2 and "embedding" not in part.ours
        }
        self._beside = {theirs: ours for ours, theirs in family.tensors.beside.items()}

    @property
    def modules(self) -> list[str]:
        """The names of the modules that may have an adapter, without that of the body."""
        return [name.removeprefix(self.family.tensors.prefix) for name in (*self._linear, *self._beside)]

    def linear(self, module: str, shape: tuple[int, int]) -> HFTensor | None:
        """Return the matrix of a module; None where it is none of ours, or of another `shape` than (rows, columns)."""
        for name in self._names(module):
            if (part := self._linear.get(name)) is not None:
                return part if part.shape == shape else None
            if (ours := self._beside.get(name)) is not None:
                return HFTensor(f"{name}.weight", f"{ours}.weight", shape)
        return None

    def of_head(self, tensor: str, shape: tuple[int, ...]) -> str | None:
        """Return our name of a tensor of a head that we have; None for another one, or of another `shape`."""
        module, _, leaf = tensor.rpartition(".")
        for name in self._names(module):
            part = self._parts.get(f"{name}.{leaf}")
            prefix = self.family.tensors.prefix
            if part is not None and prefix and not part.theirs.startswith(prefix) and part.shape == shape:
                return part.ours
            if (ours := self._beside.get(name)) is not None:
                return f"{ours}.{leaf}"
        return None

    def is_of_task(self, tensor: str) -> bool:
        """Return whether a tensor is one of the head of a task."""
        return tensor.partition(".")[0] in self._heads

    def _names(self, module: str) -> Iterable[str]:
        """Yield what a module may be called in the family's own checkpoints: classes begin names in different ways."""
        own = self.family.tensors.prefix
        return dict.fromkeys([module, *(own + module.removeprefix(prefix) for prefix in self._prefixes)])


def read_adapter(directory: Path, config: AdapterConfig, places: Places) -> Adapter:
    """Read the adapter of a directory; what is left alone is logged.

    Raises `CheckpointError` for files that are missing or damaged, and for tensors that no model of ours has a place
    for.
    """
    stored = _tensors(directory)
    adapter, unknown, left = Adapter(), [], []
    adapted = [name for name in stored if name.endswith(DOWN) and _up_of(name) in stored]
    for name in adapted:
        down, up = stored.pop(name), stored.pop(_up_of(name))
        module = name.removeprefix(PREFIX).removesuffix(DOWN)
        part = places.linear(module, (len(up), down.shape[-1])) if down.ndim == up.ndim == 2 else None
        if part is None or not len(down) or len(down) != up.shape[1]:
            unknown.append(f"{name} {tuple(down.shape)} with B {tuple(up.shape)}")
            continue
        rows = torch.empty_like(up)
        for run in part.runs():
            rows[run.ours - part.row :][: run.rows] = up[run.theirs :][: run.rows]
        difference = LowRank(part.row, rows, down, config.scale(module, len(down)))
        adapter.differences.setdefault(part.ours, []).append(difference)
    for name, tensor in stored.items():
        if ours := places.of_head(name.removeprefix(PREFIX), tuple(tensor.shape)):
            adapter.own[ours] = tensor
        elif places.is_of_task(name.removeprefix(PREFIX)):
            left.append(name.removeprefix(PREFIX))
        else:
            unknown.append(f"{name} {tuple(tensor.shape)}")
    if unknown:
        rule = f"no {places.family.model_type} of the base's sizes has a place for {first_few(unknown)}"
        raise CheckpointError(f"{directory / ADAPTER_WEIGHTS}: {rule}; {_MERGE}")
    if not adapted:
        raise CheckpointError(f"{directory / ADAPTER_WEIGHTS}: holds no {DOWN} with its {UP}; {_FIX}")
    if left:
        log.info("%s: the head of a task, and left alone: %s", directory, ", ".join(sorted(left)))
    return adapter


def _up_of(down: str) -> str:
    """Return the name of the matrix B beside that of A."""
    return down.removesuffix(DOWN) + UP


def _tensors(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of the file in fp32, on the CPU."""
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        rule = f"{ADAPTER_CONFIG} is there, but no {ADAPTER_WEIGHTS}"
        fix = "only safetensors are read; load it with peft and `save_pretrained` it again, or fetch it"
        raise CheckpointError(f"{directory}: {rule}; {fix}")
    file = OpenFiles(directory)[ADAPTER_WEIGHTS]
    try:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); {_FIX}") from None
    if other := [f"{name} ({tensor.dtype})" for name, tensor in found.items() if not tensor.is_floating_point()]:
        raise CheckpointError(f"{path}: quantized weights are not read: {first_few(other)}")
    return {name: tensor.to(torch.float32) for name, tensor in found.items()}


def ends_of(modules: Mapping[str, bool]) -> dict[str, str]:
    """Return for each module with an adapter (true) the shortest end of its name that no other module's has.

    An end is a name without what leads to the number of its block, or else the whole name.
    """
    others = [f".{name}" for name, adapted in modules.items() if not adapted]
    found: dict[str, str] = {}
    for name in (name for name, adapted in modules.items() if adapted):
        pieces = name.split(".")
        block = max((place for place, piece in enumerate(pieces) if piece.isdigit()), default=-1)
        ends = [".".join(pieces[begin:]) for begin in range(len(pieces) - 1, block, -1)]
        fits = (end for end in ends if not any(other.endswith(f".{end}") for other in others))
        found[name] = next(fits, name)
    return found
