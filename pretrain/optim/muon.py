"""Muon for the matrices of blocks, with AdamW for everything else.

Holds both behind one optimizer; the orthogonalisation is torch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn
from torch.optim import Optimizer

from pretrain.errors import check
from pretrain.optim.adamw import fused_adamw
from pretrain.optim.base import check_decay, check_fraction, check_positive, parameter_group, partition
from pretrain.registry import register

_MUON = "muon"  # the name of the group that Muon updates


class AdjustLr(StrEnum):
    """How Muon's learning rate is fitted to a matrix of R rows and C columns."""

    original = "original"  # times sqrt(max(1, R/C)), for rates near 0.02 (Jordan et al. 2024)
    match_rms_adamw = "match_rms_adamw"  # times 0.2 sqrt(max(R, C)): takes AdamW's rate and decay (Liu et al. 2025)


@register("optim", "muon")
@dataclass(kw_only=True)
class MuonConfig:
    """Muon (Jordan et al. 2024) for the matrices of blocks; AdamW for embeddings, heads, biases and norms."""

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
        check_positive("optim.lr", self.lr)
        check_fraction("optim.momentum", self.momentum)
        check(1 <= self.ns_steps < 100, "optim.ns_steps", self.ns_steps, "must be between 1 and 99; 5 is usual")
        check_decay(self.weight_decay)
        check(
            self.adamw_lr is not None or self.adjust_lr is AdjustLr.match_rms_adamw,
            "optim.adamw_lr",
            self.adamw_lr,
            "optim.adjust_lr=original needs a learning rate of its own for AdamW; set it, e.g. to 3e-4",
        )
        if self.adamw_lr is not None:
            check_positive("optim.adamw_lr", self.adamw_lr)
        check_fraction("optim.adamw_beta1", self.adamw_beta1)
        check_fraction("optim.adamw_beta2", self.adamw_beta2)
        check_positive("optim.adamw_eps", self.adamw_eps)

    def check(self, *, shards: bool) -> None:
        """See `OptimConfig`: orthogonalising a matrix takes all of it."""
        rule = "updates whole matrices, of which this strategy gives a rank parts; use optim=adamw, or strategy=ddp"
        check(not shards, "optim", "muon", rule)

    def build(self, module: nn.Module) -> MuonWithAdamW:
        """Return both in one, with the groups `muon`, `decay` and `no_decay`."""
        hidden, outer, vectors = partition(module)
        adamw_lr = self.lr if self.adamw_lr is None else self.adamw_lr
        muon = torch.optim.Muon(
            [parameter_group(_MUON, hidden, self.lr, self.weight_decay)],
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust_lr.value,
        )
        groups = [
            parameter_group("decay", outer, adamw_lr, self.weight_decay),
            parameter_group("no_decay", vectors, adamw_lr, 0.0),
        ]
        return MuonWithAdamW(muon, fused_adamw(groups, self.adamw_beta1, self.adamw_beta2, self.adamw_eps))


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
