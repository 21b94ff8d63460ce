"""Copies of what lies on a CUDA device: pinned, equal, and finished when the call returns."""

import pytest
import torch

from pretrain.checkpoint.base import WEIGHT, Fragment
from pretrain.checkpoint.staging import Staging

pytestmark = pytest.mark.gpu


def test_copies_from_a_device_are_pinned_and_those_of_the_call():
    on_device = torch.randn(1 << 24, device="cuda")
    mixed = {
        "large": on_device,
        "view": on_device[3:10],
        "scalar": torch.tensor(2.0, device="cuda"),
        "host": torch.ones(5),
    }
    before = {name: data.cpu().clone() for name, data in mixed.items()}
    memory = Staging()
    for _ in range(2):  # the second time in the same memory
        staged = memory.copy([Fragment(name, WEIGHT, tuple(data.shape), 0, data) for name, data in mixed.items()])
        on_device.fill_(torch.nan)
        assert all(torch.equal(fragment.data, before[fragment.name]) for fragment in staged)
        assert all(fragment.data.is_pinned() for fragment in staged)
        on_device.copy_(before["large"])
