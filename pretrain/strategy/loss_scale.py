"""Loss scaling with a floor, below which fp16 cannot help any more.

Holds torch's scaler with that floor; DeepSpeed's is watched in `zero_guard`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LossScaler(torch.amp.GradScaler):
    """Keeps the scale at `least` or above, and notes on the device whether an overflow came there."""

    def __init__(self, device: str, *, least: float = 1.0, **options: Any) -> None:
        super().__init__(device, **options)
        self._least = least
        self._exhausted: Tensor | None = None  # () bool, from the first update on

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Double or halve the scale as torch does, but not below the floor. Waits for nothing on the device."""
        if not self.is_enabled():
            return
        scale = self._scale
        assert scale is not None, "a loss was scaled"
        before = scale.clone()
        super().update(new_scale)
        exhausted = (scale < before) & (before <= self._least)
        self._exhausted = exhausted if self._exhausted is None else self._exhausted | exhausted
        scale.clamp_(min=self._least)

    @property
    def exhausted(self) -> bool:
        """Whether gradients overflowed at the smallest scale. Waits for the device."""
        return self._exhausted is not None and bool(self._exhausted)
