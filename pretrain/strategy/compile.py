"""torch.compile: how much of the model is compiled.

Holds the choice and its application; strategies call it before they wrap the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.objectives.base import Objective
from pretrain.objectives.cross_entropy import ChunkLoss
from pretrain.registry import register

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile


class Scope(StrEnum):
    """What one compiled graph spans."""

    none = "none"
    block = "block"
    model = "model"


@dataclass(kw_only=True)
class CompileConfig:
    """Compiles in place, so parameter names stay as they are."""

    scope: Scope = Scope.none  # none, each block by itself (fast to compile, any depth), or the whole model
    mode: str = "default"  # torch.compile's: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs

    def __post_init__(self) -> None:
        check(self.mode in MODES, "compile.mode", self.mode, f"choose one of {', '.join(MODES)}")

    def apply(self, model: Model) -> None:
        """Mark the model's parts for compilation at their first call; recomputation is wrapped around them later."""
        parts: list[nn.Module] = {Scope.none: [], Scope.block: list(model.blocks), Scope.model: [model]}[self.scope]
        for part in parts:
            part.forward = torch.compile(part.forward, mode=self.mode)

    def apply_to_loss(self, objective: Objective, device: torch.device) -> None:
        """Fuse the passes over the logits, on a GPU; on a CPU torch's own softmax is 4 times as fast (torch 2.13)."""
        if self.scope is not Scope.none and device.type != "cpu":
            objective.chunk_loss = fused(objective.chunk_loss)


def fused(arithmetic: ChunkLoss) -> ChunkLoss:
    """Compile the loss's arithmetic: one graph for chunks of all numbers of rows but 1, another without gradients."""
    compiled = torch.compile(arithmetic)

    def call(logits: Tensor, targets: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        for rows in (logits, targets):
            torch._dynamo.maybe_mark_dynamic(rows, 0)  # pyright: ignore[reportPrivateImportUsage]
        return compiled(logits, targets, *options)

    return call


@register("compile", "none")
@dataclass(kw_only=True)
class CompileNone(CompileConfig):
    """Run eagerly."""


@register("compile", "block")
@dataclass(kw_only=True)
class CompileBlock(CompileConfig):
    """Compile each block by itself."""

    scope: Scope = Scope.block


@register("compile", "model")
@dataclass(kw_only=True)
class CompileModel(CompileConfig):
    """Compile the whole model as one graph."""

    scope: Scope = Scope.model
