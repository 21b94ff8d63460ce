"""Optimizers: which parameters decay, which are orthogonalised, and an update that broken gradients cannot reach.

Holds no schedule: each parameter group keeps its peak as `base_lr`, and a strategy sets `lr` from it every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.registry import register

ParameterGroup = dict[str, Any]
"""A group of torch's optimizers: `params`, `lr` and options, with `name` and `base_lr` beside them."""

_MUON = "muon"  # the name of the group that Muon updates
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class Partition(NamedTuple):
    """The trainable parameters of a module, each in exactly one list, in the module's order; a tied tensor once."""

    hidden: list[nn.Parameter]  # matrices in the blocks of a model, what Muon is made for
    outer: list[nn.Parameter]  # embeddings, heads and all else of two or more dimensions
    vectors: list[nn.Parameter]  # biases and the gains of norms


def partition(module: nn.Module) -> Partition:
    """Sort parameters by dimension and by the module that owns them, never by name.

    Matrices decay, embeddings among them, biases and norms do not: the custom since GPT-2. Call it while parameters
    have their own shapes, before an engine flattens them.
    """
    models = [part for part in module.modules() if isinstance(part, Model)]
    in_blocks = {part for model in models for part in model.blocks.modules()}
    parts = Partition([], [], [])
    seen: set[nn.Parameter] = set()
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if parameter.ndim < 2 or isinstance(owner, _NORMS):
                parts.vectors.append(parameter)
            elif parameter.ndim == 2 and owner in in_blocks and not isinstance(owner, nn.Embedding):
                parts.hidden.append(parameter)
            else:
                parts.outer.append(parameter)
    return parts


class OptimConfig(Protocol):
    """What `run` asks of an optimizer's dataclass."""

    whole_matrices: ClassVar[bool]  # whether an update needs all of a matrix on one rank

    def build(self, module: nn.Module) -> Optimizer:
        """Return the optimizer of the module's trainable parameters."""
        ...


@register("optim", "adamw")
@dataclass(kw_only=True)
class AdamWConfig:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), torch's fused kernel."""

    whole_matrices: ClassVar[bool] = False
    lr: float = 6e-4  # peak learning rate
    beta1: float = 0.9  # decay of the first moment, per step
    beta2: float = 0.95  # decay of the second moment, per step
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # share of a matrix taken off per step, times the learning rate
    layer_decay: float = 1.0  # learning rate of a layer over that of the next one; 1: all the same

    def __post_init__(self) -> None:
        _check_positive("optim.lr", self.lr)
        _check_fraction("optim.beta1", self.beta1)
        _check_fraction("optim.beta2", self.beta2)
        _check_positive("optim.eps", self.eps)
        _check_decay(self.weight_decay)
        rule = "must be above 0 and at most 1; 1 turns it off"
        check(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, rule)

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """Return AdamW with the groups `decay` and `no_decay`; a group without parameters is left out.

        With a layer decay there are as many of each as layers: what stands after the model learns at `lr`, a block n
        steps below at lr * layer_decay^n, the embeddings lowest (Clark et al. 2020, ELECTRA, appendix B).
        """
        hidden, outer, vectors = partition(module)
        depths, top = _depths(module) if self.layer_decay < 1 else ({}, 0)
        groups = []
        for depth in range(top, -1, -1):
            lr = self.lr * self.layer_decay ** (top - depth)
            matrices, rest = (
                [parameter for parameter in parameters if depths.get(parameter, top) == depth]
                for parameters in (hidden + outer, vectors)
            )
            groups += [_group("decay", matrices, lr, self.weight_decay), _group("no_decay", rest, lr, 0.0)]
        return _adamw(groups, self.beta1, self.beta2, self.eps)


class AdjustLr(StrEnum):
    """How Muon's learning rate is fitted to a matrix of R rows and C columns."""

    original = "original"  # times sqrt(max(1, R/C)), for rates near 0.02 (Jordan et al. 2024)
    match_rms_adamw = "match_rms_adamw"  # times 0.2 sqrt(max(R, C)): takes AdamW's rate and decay (Liu et al. 2025)


@register("optim", "muon")
@dataclass(kw_only=True)
class MuonConfig:
    """Muon (Jordan et al. 2024) for the matrices of blocks; AdamW for embeddings, heads, biases and norms."""

    whole_matrices: ClassVar[bool] = True
    lr: float = 6e-4  # peak learning rate of Muon
    momentum: float = 0.95  # decay of the momentum, per step
    nesterov: bool = True  # look one step ahead along the momentum
    ns_steps: int = 5  # Newton-Schulz iterations of the orthogonalisation
    adjust_lr: AdjustLr = AdjustLr.match_rms_adamw  # original or match_rms_adamw
    weight_decay: float = 0.1  # share of a matrix taken off per step, times the learning rate; both optimizers
    adamw_lr: float | None = None  # peak learning rate of AdamW; null takes `lr`, which suits match_rms_adamw only
    adamw_beta1: float = 0.9  # AdamW's decay of the first moment, per step
    adamw_beta2: float = 0.95  # AdamW's decay of the second moment, per step
    adamw_eps: float = 1e-8  # AdamW's addition to the root of the second moment

    def __post_init__(self) -> None:
        _check_positive("optim.lr", self.lr)
        _check_fraction("optim.momentum", self.momentum)
        check(1 <= self.ns_steps < 100, "optim.ns_steps", self.ns_steps, "must be between 1 and 99; 5 is usual")
        _check_decay(self.weight_decay)
        check(
            self.adamw_lr is not None or self.adjust_lr is AdjustLr.match_rms_adamw,
            "optim.adamw_lr",
            self.adamw_lr,
            "optim.adjust_lr=original needs a learning rate of its own for AdamW; set it, e.g. to 3e-4",
        )
        if self.adamw_lr is not None:
            _check_positive("optim.adamw_lr", self.adamw_lr)
        _check_fraction("optim.adamw_beta1", self.adamw_beta1)
        _check_fraction("optim.adamw_beta2", self.adamw_beta2)
        _check_positive("optim.adamw_eps", self.adamw_eps)

    def build(self, module: nn.Module) -> MuonWithAdamW:
        """Return both in one, with the groups `muon`, `decay` and `no_decay`."""
        hidden, outer, vectors = partition(module)
        adamw_lr = self.lr if self.adamw_lr is None else self.adamw_lr
        muon = torch.optim.Muon(
            [_group(_MUON, hidden, self.lr, self.weight_decay)],
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust_lr.value,
        )
        groups = [
            _group("decay", outer, adamw_lr, self.weight_decay),
            _group("no_decay", vectors, adamw_lr, 0.0),
        ]
        return MuonWithAdamW(muon, _adamw(groups, self.adamw_beta1, self.adamw_beta2, self.adamw_eps))


class MuonWithAdamW(Optimizer):
    """torch's Muon and torch's AdamW behind one face: one list of groups, one state, one step."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], defaults={})
        self._muon = muon
        self._adamw = adamw

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; no loss is evaluated anew."""
        orthogonalised = [group for group in self.param_groups if group["name"] == _MUON]
        others = [group for group in self.param_groups if group["name"] != _MUON]
        for part, groups in ((self._muon, orthogonalised), (self._adamw, others)):
            part.param_groups, part.state = groups, self.state  # anew each step: `load_state_dict` replaces both
            part.step()


def guarded_step(optimizer: Optimizer, norm: Tensor) -> None:
    """Update unless the gradients' norm () is not finite; then weights, moments and step counts stay bit for bit.

    Fused AdamW learns it from a flag on the device, the way torch's GradScaler tells it, so the host waits for nothing.
    Any other optimizer costs one read of the norm.
    """
    if isinstance(optimizer, torch.optim.AdamW) and all(group["fused"] for group in optimizer.param_groups):
        optimizer.found_inf = norm.isfinite().logical_not().float()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    elif norm.isfinite():
        optimizer.step()


def _depths(module: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """Return how deep each parameter of the model inside the module lies, and the depth of those beside it."""
    [model] = [part for part in module.modules() if isinstance(part, Model)]
    return {parameter: model.depth(name) for name, parameter in model.named_parameters()}, len(model.blocks) + 1


def _group(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> ParameterGroup:
    return {"name": name, "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


def _adamw(groups: list[ParameterGroup], beta1: float, beta2: float, eps: float) -> torch.optim.AdamW:
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, betas=(beta1, beta2), eps=eps, fused=True)


def _check_positive(key: str, value: float) -> None:
    check(value > 0, key, value, "must be above 0")


def _check_fraction(key: str, value: float) -> None:
    check(0 <= value < 1, key, value, "must be at least 0 and below 1")


def _check_decay(value: float) -> None:
    check(value >= 0, "optim.weight_decay", value, "must be 0 (no decay) or more")
