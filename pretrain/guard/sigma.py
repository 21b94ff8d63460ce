"""A guard that refuses gradients whose norm is far above what the run is used to.

Holds the statistics and the limit. As in OLMo's skip-step optimizer a limit lies some standard deviations above the
mean; unlike there the statistics are exponential averages, which a checkpoint holds whole: a resumed run decides as the
uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.errors import check
from pretrain.guard.base import Verdict
from pretrain.registry import register

LEAST_DEVIATION = 0.05  # of log norms: with sigma=6 a norm up to 35 % above the usual one passes, however even they are
KEYS = ("guard_mean", "guard_variance", "guard_count")  # in the state of a checkpoint


@register("guard", "sigma")
@dataclass(kw_only=True)
class SigmaConfig:
    """Also skip updates whose gradient norm is an outlier: a bad batch costs one step, not the run."""

    sigma: float = 6.0  # standard deviations of the logarithm of the norm above its mean; what is higher is skipped
    warmup: int = 100  # accepted optimizer steps before anything is judged
    decay: float = 0.99  # share that the mean and the variance keep in a step: 0.99 looks back some 100 steps

    def __post_init__(self) -> None:
        check(0 < self.sigma < math.inf, "guard.sigma", self.sigma, "must be above 0, and finite; 6 is usual")
        check(self.warmup >= 2, "guard.warmup", self.warmup, "at least 2 optimizer steps, of which a variance is known")
        check(0 < self.decay < 1, "guard.decay", self.decay, "must lie between 0 and 1, e.g. 0.99")

    def build(self) -> SigmaGuard:
        """Return the guard, which has seen no norm."""
        return SigmaGuard(self)


class SigmaGuard:
    """Judges by the mean and the variance of log(norm) over the accepted steps; see `Guard`.

    Norms spread like log-normal numbers, so a factor counts the same anywhere. Step i of n has the weight
    decay ** (n - i) in both averages, divided by the sum of the weights (West 1979, updating mean and variance
    estimates), so that the first steps count no more than they should. Only norms that are too large are refused; one
    of 0, a batch without targets, passes and teaches nothing. Ranks and strategies sum squares in another order:
    statistics agree to some 1e-7.
    """

    def __init__(self, cfg: SigmaConfig) -> None:
        self._cfg = cfg
        self._state = torch.zeros(3, dtype=torch.float64)  # mean, variance and count of the accepted log norms

    def judge(self, norm: Tensor) -> Verdict:
        cfg, state = self._cfg, self._state.to(norm.device)
        mean, variance, count = state.unbind()
        value = norm.detach().double().log()
        known = count >= cfg.warmup
        deviations = (value - mean) / variance.sqrt().clamp(min=LEAST_DEVIATION)
        accepted = norm.isfinite() & ~(known & (deviations > cfg.sigma))
        weight = (1 - cfg.decay) / (1 - cfg.decay ** (count + 1))
        off = value - mean
        moved = torch.stack([mean + weight * off, (1 - weight) * (variance + weight * off.square()), count + 1])
        self._state = torch.where(accepted & (norm > 0), moved, state)
        return Verdict(accepted, torch.where(known & norm.isfinite(), deviations, torch.nan))

    def state(self) -> dict[str, float]:
        return dict(zip(KEYS, self._state.tolist(), strict=True))

    def load_state(self, state: Mapping[str, float]) -> None:
        self._state = torch.tensor([state.get(key, 0.0) for key in KEYS], dtype=torch.float64)
