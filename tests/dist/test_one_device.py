"""The laws of tests/gpu/test_one_device.py on the CPU: that they can be kept, and what of them does not need a GPU."""

import pytest
from equivalence import reference
from one_device import (
    OFFLOADED,
    SAVED,
    SHORT,
    check_offloads_without_a_change,
    check_saves_the_values_of_the_call,
    check_skips_what_overflows,
    check_takes_the_steps_of_plain_torch,
)
from ranks import on_ranks

from pretrain.strategy.precision import BF16, FP32

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def check_all(world, folder, expected):
    for name in ("ddp", "zero3+offload", "fsdp2"):
        check_takes_the_steps_of_plain_torch(world, name, expected)
    for name in OFFLOADED:
        for precision in (FP32(), BF16()):
            check_offloads_without_a_change(world, folder / f"{name} {precision.dtype}", name, precision)
    for name in SAVED:
        check_saves_the_values_of_the_call(world, folder / f"saved {name}", name)
    for name in ("ddp", "fsdp2"):  # DeepSpeed has no fp16 on a CPU
        check_skips_what_overflows(world, folder / f"fp16 {name}", name)


def test_the_laws_of_one_device_hold_on_a_cpu(tmp_path):
    on_ranks(1, check_all, tmp_path, reference(SHORT)[0])
