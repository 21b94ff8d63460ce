"""The floating-point peaks of devices, what model FLOPs utilisation is measured against.

Holds published figures only; the utilisation itself is in `metrics`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from pretrain.distributed.world import World


class _Peak(NamedTuple):
    pattern: str  # regular expression, searched in the device name
    bf16: float | None  # dense TFLOP/s with fp32 accumulation; None = no hardware for it
    fp16: float | None
    tf32: float | None
    fp32: float  # without TF32


# Dense figures: where a data sheet prints the rate with 2:4 sparsity, half of it stands here.
_PEAKS = (
    # NVIDIA B200: HGX B200 data sheet, an eighth of the 8-GPU board
    _Peak(r"\bB200\b", 2250, 2250, 1125, 75),
    # NVIDIA H200 data sheet (SXM and NVL)
    _Peak(r"\bH200 NVL\b", 835.5, 835.5, 417.5, 60),
    _Peak(r"\bH200\b", 989.4, 989.4, 494.7, 66.9),
    # NVIDIA H100 data sheet and "H100 Tensor Core GPU Architecture" white paper; the SXM part calls itself "HBM3"
    _Peak(r"\bH100 NVL\b", 835.5, 835.5, 417.5, 60),
    _Peak(r"\bH100 PCIe\b", 756, 756, 378, 51.2),
    _Peak(r"\bH100\b.*(HBM3|SXM)", 989.4, 989.4, 494.7, 66.9),
    # NVIDIA A100 data sheet (SXM and PCIe, 40 and 80 GB alike)
    _Peak(r"\bA100\b", 312, 312, 156, 19.5),
    # NVIDIA L4 and L40S data sheets
    _Peak(r"\bL40S\b", 362, 362, 183, 91.6),
    _Peak(r"\bL4\b", 121, 121, 60, 30.3),
    # NVIDIA A10 data sheet (the A10G of cloud providers is another, slower part)
    _Peak(r"\bA10\b", 125, 125, 62.5, 31.2),
    # NVIDIA V100 and V100S data sheets; no bf16, no TF32
    _Peak(r"\bV100S\b", None, 130, None, 16.4),
    _Peak(r"\bV100-PCIE\b", None, 112, None, 14),
    _Peak(r"\bV100-SXM2\b", None, 125, None, 15.7),
    # "NVIDIA Ada GPU Architecture" white paper: half precision with fp32 accumulation, half of the fp16-accumulate rate
    _Peak(r"\bRTX 4090$", 165.2, 165.2, 82.6, 82.6),
    # AMD CDNA 2 white paper: a torch device is one of the two dies of an MI250X, so half of the card; fp32 matrix rate
    _Peak(r"\bMI250X\b", 191.5, 191.5, None, 47.9),
    # AMD Instinct MI300X data sheet; fp32 matrix rate
    _Peak(r"\bMI300X\b", 1307.4, 1307.4, 653.7, 163.4),
)
_PARTIAL_DEVICE = re.compile(r"\bMIG\b|\bGRID\b|\bLaptop\b|\bMax-Q\b")


def peak_flops(device_name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Return the dense peak of one device in FLOP/s, None where it is not known: any CPU, a slice, a laptop part.

    `device_name` is what `torch.cuda.get_device_name` returns. With `tf32`, fp32 matrix products run in TF32
    (`torch.set_float32_matmul_precision("high")`) and are measured against that peak, if the device has one.
    """
    if _PARTIAL_DEVICE.search(device_name):
        return None
    row = next((row for row in _PEAKS if re.search(row.pattern, device_name)), None)
    if row is None:
        return None
    single = row.tf32 if tf32 and row.tf32 else row.fp32
    tera = {torch.bfloat16: row.bf16, torch.float16: row.fp16, torch.float32: single}.get(dtype)
    return None if tera is None else tera * 1e12


def peak_of_all(world: World, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Return the FLOP/s of all ranks' devices together, taken to be like this rank's; None where it is not known.

    `tf32` as in `peak_flops`.
    """
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    peak = peak_flops(name, dtype, tf32=tf32)
    return peak * world.size if peak else None
