"""Every strategy on one CUDA device: the steps of plain torch on a CPU, offloading, fp16, and saves under way.

The laws are in `tests/dist/one_device.py`, and hold on the CPU (`tests/dist/test_one_device.py`).
"""

import pytest
import torch
from equivalence import reference, strategies
from one_device import (
    OFFLOADED,
    SAVED,
    SHORT,
    check_offloads_without_a_change,
    check_saves_the_values_of_the_call,
    check_skips_what_overflows,
    check_takes_the_steps_of_plain_torch,
)

from pretrain.strategy.precision import BF16, FP32

pytestmark = pytest.mark.gpu
A_TENTH_OF_A_SECOND = 200_000_000  # cycles


@pytest.fixture(scope="module")
def expected():
    return reference(SHORT)[0]


@pytest.mark.parametrize("name", strategies(1))
def test_every_strategy_takes_the_steps_of_plain_torch(world, name, expected):
    check_takes_the_steps_of_plain_torch(world, name, expected)


@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=lambda precision: str(precision.dtype))
@pytest.mark.parametrize("name", OFFLOADED)
def test_offloading_changes_nothing(world, tmp_path, name, precision):
    check_offloads_without_a_change(world, tmp_path, name, precision)


@pytest.mark.parametrize("name", SAVED)
def test_a_save_holds_the_values_of_its_call(world, tmp_path, name):
    """Copies wait behind a device that is busy, and steps are taken before they are written."""
    check_saves_the_values_of_the_call(world, tmp_path, name, lambda: torch.cuda._sleep(A_TENTH_OF_A_SECOND))


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero2+offload", "zero3", "fsdp2"])
def test_fp16_skips_what_overflows_and_halves_its_scale(world, tmp_path, name):
    check_skips_what_overflows(world, tmp_path, name)
