"""Muon for the matrices of blocks, with AdamW for everything else.

Holds both behind one optimizer; the orthogonalisation is in `newton_schulz`, how ranks share it in `shared_matrices`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from pretrain.distributed.world import World
from pretrain.errors import check
from pretrain.models.width_scaling import WidthScaling
from pretrain.optim.adamw import FusedAdamW
from pretrain.optim.base import (
    EagerOptimizer,
    ParameterGroup,
    check_decay,
    check_fraction,
    check_positive,
    hidden_group,
    parameter_group,
    partition,
    spared,
    width_scaling,
)
from pretrain.optim.shared_matrices import Piece, SharedMatrices, whole
from pretrain.registry import register

_MUON = "muon"  # the name of the group that Muon updates


class AdjustLr(StrEnum):
    """How Muon's learning rate is fitted to a matrix of R rows and C columns."""

    original = "original"  # times sqrt(max(1, R/C)), for rates near 0.02 (Jordan et al. 2024)
    match_rms_adamw = "match_rms_adamw"  # times 0.2 sqrt(max(R, C)): takes AdamW's rate and decay (Liu et al. 2025)

    def factor(self, rows: int, columns: int) -> float:
        """Return what the learning rate is multiplied by."""
        if self is AdjustLr.original:
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))

    def for_width(self, scaling: WidthScaling) -> float:
        """Return what muP multiplies the learning rate by.

        The factor of `original`, sqrt(R/C), keeps the largest singular value of an update at any width already.
        """
        return 1.0 if self is AdjustLr.original else scaling.lr_orthogonal


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
    decay_embeddings: bool = True  # whether embeddings decay; a tied one is the vocabulary projection, too
    adamw_lr: float | None = None  # peak learning rate of AdamW; null takes `lr`, which suits match_rms_adamw only
    adamw_beta1: float = 0.9  # AdamW's decay of the first moment, per step
    adamw_beta2: float = 0.95  # AdamW's decay of the second moment, per step
    adamw_eps: float = 1e-8  # AdamW's addition to the root of the second moment

    def __post_init__(self) -> None:
        check_positive("optim.lr", self.lr)
        check_fraction("optim.momentum", self.momentum)
        check(1 <= self.ns_steps < 100, "optim.ns_steps", self.ns_steps, "must be between 1 and 99; 5 is usual")
        check_decay(self.weight_decay, embeddings=self.decay_embeddings)
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

    def check(self, *, swaps: bool) -> None:
        """See `OptimConfig`: DeepSpeed swaps the moments that it knows."""
        rule = "keeps a momentum, which DeepSpeed cannot swap to NVMe; use optim=adamw, or offload to cpu"
        check(not swaps, "optim", "muon", rule)

    def build(self, module: nn.Module) -> MuonWithAdamW:
        """Return both in one, with the groups `muon`, `decay` and `no_decay`."""
        hidden, outer, vectors = partition(module)
        adamw_lr = self.lr if self.adamw_lr is None else self.adamw_lr
        others = spared(module, decay_embeddings=self.decay_embeddings)
        decaying = [parameter for parameter in outer if parameter not in others]
        rest = [parameter for parameter in outer if parameter in others] + vectors
        groups = [
            parameter_group("decay", decaying, adamw_lr, self.weight_decay),
            parameter_group("no_decay", rest, adamw_lr, 0.0),
        ]
        adamw = FusedAdamW(groups, self.adamw_beta1, self.adamw_beta2, self.adamw_eps)
        factor = self.adjust_lr.for_width(width_scaling(module))
        muon = hidden_group(hidden, self.lr, self.weight_decay, factor, name=_MUON)
        return MuonWithAdamW(self, muon, adamw)


class MuonWithAdamW(EagerOptimizer):
    """Muon and torch's AdamW behind one face: one list of groups, one state, one step.

    The step never waits for the device. With `found_inf` (), the flag that torch's GradScaler gives to optimizers, a
    step whose flag is not 0 leaves weights, moments and counts bit for bit, like that of fused AdamW.
    """

    def __init__(self, cfg: MuonConfig, muon: ParameterGroup, adamw: FusedAdamW) -> None:
        super().__init__([*([muon] if muon["params"] else []), *adamw.param_groups], defaults={})
        self.dtype = torch.bfloat16  # of the iteration and of what ranks send for it; Jordan et al. 2024 take bf16
        self._cfg = cfg
        self._adamw = adamw
        self._matrices: list[nn.Parameter] = muon["params"]
        self._step_supports_amp_scaling = True  # says that `found_inf` is heeded
        device = self._matrices[0].device if self._matrices else torch.device("cpu")
        self.share(World(0, 1, device), [whole(matrix) for matrix in self._matrices], 1)

    def matrices(self) -> list[nn.Parameter]:
        """See `SharesMatrices`."""
        return list(self._matrices)

    def share(self, world: World, pieces: list[Piece], replica_ranks: int) -> None:
        """See `SharesMatrices`."""
        self._shared = SharedMatrices(world, pieces, replica_ranks, self._cfg.ns_steps)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient, the same ones on all ranks; no loss is evaluated anew."""
        flag: Tensor | None = getattr(self, "found_inf", None)
        self._update_matrices(None if flag is None else flag.bool())
        adamw = self._adamw
        adamw.param_groups = [group for group in self.param_groups if group["name"] != _MUON]
        adamw.state = self.state  # both anew each step: `load_state_dict` replaces them
        adamw.found_inf = flag  # pyright: ignore[reportAttributeAccessIssue]
        adamw.step()

    def _update_matrices(self, skip: Tensor | None) -> None:
        """Move the momentum, orthogonalise it, and move the weights, of those matrices that are in `param_groups` now.

        ZeRO calls a step for one group, or a part of one, at a time.
        """
        groups = {holder: group for group in self.param_groups if group["name"] == _MUON for holder in group["params"]}
        pieces = {
            i: piece
            for i, piece in enumerate(self._shared.pieces)
            if piece.holder in groups and piece.holder.grad is not None
        }
        updates = {i: self._direction(piece, skip).to(self.dtype) for i, piece in pieces.items()}
        for i, update in self._shared.orthogonalized(updates).items():
            piece = pieces[i]
            group, weights = groups[piece.holder], piece.of(piece.holder)
            moved = weights * (1 - group["lr"] * group["weight_decay"])
            moved.add_(update.to(weights.device), alpha=-group["lr"] * self._cfg.adjust_lr.factor(*piece.shape))
            _replace(weights, moved, skip)

    def _direction(self, piece: Piece, skip: Tensor | None) -> Tensor:
        """Move the momentum of a piece along its gradient, and return what is to be orthogonalised (numel,)."""
        state, gradient = self.state[piece.holder], piece.holder.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(piece.holder)
        momentum, gradient = piece.of(state["momentum_buffer"]), piece.of(gradient)
        moved = momentum.lerp(gradient, 1 - self._cfg.momentum)
        _replace(momentum, moved, skip)
        return gradient.lerp(moved, self._cfg.momentum) if self._cfg.nesterov else moved


def _replace(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    """Copy `new` into `old`, unless the flag `skip` () on the device is set."""
    if skip is None:
        old.copy_(new)
    else:
        torch.where(skip, old, new, out=old)
