"""What decides whether a step's gradient may move the weights, and the guard that refuses only what is not finite.

Holds the interface; how an update is left out is in `optim.base`, what a run records of it in `train/skips`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from pretrain.registry import register


class Verdict(NamedTuple):
    """What a guard says of one step, on the device of the gradient's norm."""

    accepted: Tensor  # () bool
    norm_z: Tensor | None  # () float64: deviations above the usual norm, NaN where it is not known; None: not measured


class Guard(Protocol):
    """Judges the global gradient norm, which is the same on every rank: so all ranks decide alike.

    The loss is not judged. It would have to be summed over ranks before the update, a wait for the network in each
    step, and a batch that spoils the weights does it through its gradient.
    """

    def judge(self, norm: Tensor) -> Verdict:
        """Judge the norm () of a step before clipping, and learn from it. Waits for nothing on the device.

        A norm that is not finite is refused, and nothing is learnt from what is refused.
        """
        ...

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps of it, under names that begin with `guard_`. Waits for the device."""
        ...

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take up what `state` gave, to the bit; without such entries the guard begins anew."""
        ...


class GuardConfig(Protocol):
    """The settings of a guard."""

    def build(self) -> Guard:
        """Return the guard of one run, which has seen nothing."""
        ...


@register("guard", "none")
@dataclass(kw_only=True)
class FiniteConfig:
    """Updates are skipped for gradients that are not finite, and for no others."""

    def build(self) -> FiniteGuard:
        """Return the guard, which remembers nothing."""
        return FiniteGuard()


class FiniteGuard:
    """Accepts every finite norm; see `Guard`."""

    def judge(self, norm: Tensor) -> Verdict:
        return Verdict(norm.isfinite(), None)

    def state(self) -> dict[str, float]:
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Leave the statistics of another guard where they are."""
