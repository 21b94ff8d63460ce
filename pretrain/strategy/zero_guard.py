"""Where a guard stops DeepSpeed, whose optimizers of stages 1 to 3 decide by themselves whether a step is taken.

Holds how DeepSpeed 0.19 is made to ask; stage 0 ends its steps as ddp does.

DeepSpeed computes the global norm, reads on the host whether it is a number, and else leaves the step out by its own
path, which drops gradients and buffers. The guard stands in between: it sees the norm, and gives an infinite one back
for what it refuses. That read is there with and without a guard, so the guard adds no wait; it makes DeepSpeed's step
the only one in which the host learns of the decision. DeepSpeed takes an infinite norm for an overflow and would halve
the loss scale of fp16: `_update_scale` is not told of refused steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pretrain.guard.base import FiniteGuard, Guard, Verdict


class Gate:
    """Stands between the norm that a DeepSpeed optimizer computes and what that makes of it.

    Holds what became of the newest step: `norm` () before clipping, infinite where it was not finite, and `verdict`.
    """

    def __init__(self, zero: Any, stage: int) -> None:
        from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
        from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors

        self.scale_exhausted = False  # gradients overflowed at the smallest loss scale
        self._zero, self._stage, self._combine = zero, stage, combine_grad_norm_groups
        self.begin(FiniteGuard())
        if isinstance(zero, BF16_Optimizer):  # stage 1 in bf16; it has no loss scale
            self._global_norm, self._gradients = get_global_norm_of_tensors, zero.get_grads_for_norm
            zero.get_grads_for_norm = self._judged_gradients
            return
        self._update_scale = zero._update_scale
        zero._update_scale = self._scaled
        if stage == 3:
            self._norms = zero._get_norm_groups
            zero._get_norm_groups = self._judged_groups
        else:
            self._norm = zero.scaled_global_norm
            zero.scaled_global_norm = lambda: self._judged(self._norm() / zero.loss_scale) * zero.loss_scale

    def begin(self, guard: Guard) -> None:
        """Let a guard judge the next step, and forget the one before: some overflows are found without a norm."""
        self._guard = guard
        self.norm = torch.tensor(math.inf)
        self.verdict = Verdict(torch.tensor(False), None)

    def _judged_groups(self) -> list[Tensor]:
        """Return the norms that stage 3 joins to that of all, with one more, which is 0 or infinite."""
        groups = self._norms()
        joined = self._combine(groups)
        accepted = self._judged(joined / self._zero.loss_scale).isfinite()
        return [*groups, torch.where(accepted, torch.zeros_like(joined), math.inf)]

    def _judged_gradients(self, for_clipping: bool = False) -> Any:
        """Return the gradients whose norm is computed, with one more that is 0 or infinite.

        The norm inside of `step` cannot be reached, so it is computed once more, over this rank's shard.
        """
        gradients = self._gradients(for_clipping=for_clipping)
        if for_clipping:
            return gradients
        own, of_experts = gradients
        norm = self._global_norm(input_tensors=own, mpu=self._zero.mpu, norm_type=self._zero.norm_type)
        accepted = self._judged(torch.where(norm < 0, math.inf, norm)).isfinite()  # -1 stands for what is not finite
        return [*own, torch.where(accepted, 0.0, math.inf).to(own[0])], of_experts

    def _judged(self, norm: Tensor) -> Tensor:
        """Return the norm of the gradients, or infinity where the step is not to be taken."""
        self.norm = norm.float()
        self.verdict = self._guard.judge(self.norm)
        return torch.where(self.verdict.accepted, norm, math.inf)

    def _scaled(self, has_overflow: bool = False) -> None:
        """Let the loss scale follow overflows alone, and note one at its floor, where DeepSpeed raises `Exception`."""
        overflowed = has_overflow and not math.isfinite(self.norm)
        scaler = self._zero.loss_scaler
        if overflowed and scaler.dynamic and scaler.cur_scale <= scaler.min_scale:
            self.scale_exhausted = True
            scaler.raise_error_at_min_scale = False
        self._update_scale(overflowed)
        if has_overflow and self._stage < 3:
            # Offloaded gradients of half precision stay in these sums, to which the next step would add (0.19).
            self._zero.averaged_gradients = dict.fromkeys(self._zero.averaged_gradients)
