"""The floating-point peaks of devices, what model FLOPs utilisation is measured against.

Holds published figures only; the utilisation itself is in `metrics`.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

import torch

from pretrain.distributed.world import World


class _Peak(NamedTuple):
    names: str  # regular expression that a device's whole name matches, after the maker's
    bf16: float | None  # dense TFLOP/s with fp32 accumulation; None = no hardware for it
    fp16: float | None
    tf32: float | None
    fp32: float  # without TF32


# Dense figures: where a data sheet prints the rate with 2:4 sparsity, half of it stands here. Names are whole: "H20" is
# no H200, and a slice (MIG), a virtual or a laptop part has a name of its own.
_PEAKS = (
    # NVIDIA B200: HGX B200 data sheet, an eighth of the 8-GPU board; GB200: GB200 NVL72 data sheet, one of 72
    _Peak(r"B200", 2250, 2250, 1125, 75),
    _Peak(r"GB200", 2500, 2500, 1250, 80),
    # NVIDIA H200 data sheet (SXM and NVL)
    _Peak(r"H200 NVL", 835.5, 835.5, 417.5, 60),
    _Peak(r"H200", 989.4, 989.4, 494.7, 66.9),
    # NVIDIA H100 data sheet and "H100 Tensor Core GPU Architecture" white paper; the SXM part calls itself "HBM3".
    # GH200 data sheet: the same chip beside a CPU. H800: the same with slower NVLink and fp64.
    _Peak(r"H100 NVL", 835.5, 835.5, 417.5, 60),
    _Peak(r"H100 PCIe", 756, 756, 378, 51.2),
    _Peak(r"H100 (80GB HBM3|SXM5.*)|GH200 (120GB|480GB|144G HBM3e)|H800", 989.4, 989.4, 494.7, 66.9),
    # NVIDIA H20 data sheet
    _Peak(r"H20", 148, 148, 74, 44),
    # NVIDIA A100 data sheet (SXM and PCIe, 40 and 80 GB alike); A800: the same with slower NVLink
    _Peak(r"A[18]00(-SXM4| |-PCIE)?-?(40|80)GB( PCIe)?", 312, 312, 156, 19.5),
    # NVIDIA L4 and L40S data sheets
    _Peak(r"L40S", 362, 362, 183, 91.6),
    _Peak(r"L4", 121, 121, 60, 30.3),
    # NVIDIA A10 data sheet (the A10G of cloud providers is another, slower part)
    _Peak(r"A10", 125, 125, 62.5, 31.2),
    # NVIDIA V100 and V100S data sheets; no bf16, no TF32
    _Peak(r"V100S-PCIE-32GB", None, 130, None, 16.4),
    _Peak(r"V100-PCIE-(16|32)GB", None, 112, None, 14),
    _Peak(r"V100-SXM2-(16|32)GB", None, 125, None, 15.7),
    # "NVIDIA Ada GPU Architecture" white paper: half precision with fp32 accumulation, half of the fp16-accumulate rate
    _Peak(r"RTX 4090", 165.2, 165.2, 82.6, 82.6),
    # AMD CDNA 2 white paper: a torch device is one of the two dies of an MI250X, so half of the card; fp32 matrix rate
    _Peak(r"MI250X", 191.5, 191.5, None, 47.9),
    # AMD Instinct MI300X data sheet; fp32 matrix rate
    _Peak(r"MI300X", 1307.4, 1307.4, 653.7, 163.4),
)
_MAKER = r"(NVIDIA |NVIDIA GeForce |GeForce |Tesla |AMD Instinct )?"  # drivers of some years wrote less

log = logging.getLogger(__name__)


def peak_flops(device_name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Return the dense peak of one device in FLOP/s, None where it is not known: any CPU, a slice, a laptop part.

    `device_name` is what `torch.cuda.get_device_name` returns. With `tf32`, fp32 matrix products run in TF32
    (`torch.set_float32_matmul_precision("high")`) and are measured against that peak, if the device has one.
    """
    row = next((row for row in _PEAKS if re.fullmatch(f"{_MAKER}({row.names})", device_name)), None)
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
    if peak is None and world.device.type == "cuda" and world.is_first:
        log.info("%s: no published peak for %s is on record (train/peaks.py), so mfu is not reported", name, dtype)
    return peak * world.size if peak else None
