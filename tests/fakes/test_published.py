"""The estimate of a step agrees with published runs that its constants are not fitted on."""

import pytest
from fake_kernels import published_ratios
from forks import on_fake_cuda

CONSTANTS = ("product", "attention", "memory", "clock")


def test_torchtitan_compiled():
    """And would not with any of the constants that matter 30 % off."""
    factors = [{}, *({name: factor} for name in CONSTANTS for factor in (0.7, 1.3))]
    right, *wrong = on_fake_cuda(published_ratios, "torchtitan", factors)
    assert right == pytest.approx(1, abs=0.04)
    assert all(abs(each - 1) > 0.04 for each in wrong), wrong
