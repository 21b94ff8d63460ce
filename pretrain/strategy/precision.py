"""Numeric precision of the forward and backward pass; weights and moments are fp32 everywhere.

Holds what torch's autocast and its products need to know. Engines with a precision policy of their own read the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.registry import register
from pretrain.strategy.loss_scale import LossScaler


@dataclass(kw_only=True)
class Precision:
    """The dtype that matrix products and attention run in."""

    dtype: ClassVar[torch.dtype]

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which the forward pass runs; also usable as a decorator."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def takes_tf32(self, device: torch.device) -> bool:
        """Whether products of fp32 matrices run in TF32 on the device."""
        return False

    @contextmanager
    def products(self, device: torch.device) -> Iterator[None]:
        """Set for the whole process how products of fp32 matrices are computed on the device; afterwards as before.

        By the one call that torch's older and newer settings share, 2.11 to 2.13. It would touch CPUs, too.
        """
        before = torch.get_float32_matmul_precision()
        if not self.takes_tf32(device):
            yield
            return
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def scaler(self, device: torch.device) -> LossScaler:
        """Return the loss scaler; a disabled one, which passes everything through, where none is needed."""
        return LossScaler(device.type, enabled=False)

    def check_machine(self, *, device_type: str, compiles: bool) -> None:
        """Raise `ConfigError` where devices of a type ("cpu", "cuda") cannot compute so; needs no group."""

    def convert(self, model: Model) -> None:
        """Replace layers by such that compute so by themselves, in place, before the model is compiled and sharded."""


@register("precision", "fp32")
@dataclass(kw_only=True)
class FP32(Precision):
    """Everything in single precision; on GPUs from compute capability 8.0, products of matrices take inputs in TF32."""

    dtype: ClassVar[torch.dtype] = torch.float32
    tf32: bool = True  # on GPUs products round their inputs to 10 bits of mantissa and add up in fp32; CPUs never do

    def takes_tf32(self, device: torch.device) -> bool:
        return self.tf32 and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@register("precision", "bf16")
@dataclass(kw_only=True)
class BF16(Precision):
    """bfloat16 by autocast: the range of fp32, so no loss scaling."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16


@register("precision", "fp16")
@dataclass(kw_only=True)
class FP16(Precision):
    """float16 by autocast with dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740)."""

    dtype: ClassVar[torch.dtype] = torch.float16
    initial_scale: float = 65536.0  # factor on the loss at the first step
    growth_every: int = 2000  # optimizer steps without overflow after which the scale doubles
    min_scale: float = 1.0  # the scale halves no further; a run whose gradients overflow there ends

    def __post_init__(self) -> None:
        check(self.initial_scale >= 1, "precision.initial_scale", self.initial_scale, "at least 1")
        rule = f"must be above 0 and at most precision.initial_scale={self.initial_scale:g}"
        check(0 < self.min_scale <= self.initial_scale, "precision.min_scale", self.min_scale, rule)
        check(self.growth_every >= 1, "precision.growth_every", self.growth_every, "at least 1 optimizer step")

    def scaler(self, device: torch.device) -> LossScaler:
        scaling = {"init_scale": self.initial_scale, "growth_interval": self.growth_every}
        return LossScaler(device.type, least=self.min_scale, **scaling)
