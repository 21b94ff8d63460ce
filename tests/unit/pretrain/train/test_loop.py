"""The loop: between log steps it reads nothing back from the device, whatever the step is made of."""

import pytest
import torch
from looped import LENGTHS, STEPS, TARGETS, take_steps
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ALONE

from pretrain.models.attention.sdpa import sdpa
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig
from pretrain.strategy.precision import BF16, FP16, FP32


class ReadBackError(Exception):
    """A value went from a tensor to the host; on a GPU that waits for all work before it."""


class NoReads(TorchDispatchMode):
    """`.item()`, `bool()`, `float()` and `if tensor` all end in one operator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise ReadBackError
        return func(*args, **(kwargs or {}))


class NoLists(TorchFunctionMode):
    """These copy a tensor to the host without that operator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            raise ReadBackError
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", [FP32(), BF16(), FP16()])
def test_nothing_is_read_back_between_log_steps(precision):
    with NoReads(), NoLists():
        state, asked = take_steps(ALONE, AdamWConfig(), precision, sdpa)
    assert (state.tokens, state.step_targets) == (STEPS * 2 * sum(LENGTHS), 2 * TARGETS)
    assert asked == [f"log {STEPS}", f"save {STEPS} True"], "the last save must not fail in silence"


def test_muon_reads_the_norm_as_its_documentation_says():
    with NoReads(), pytest.raises(ReadBackError):
        take_steps(ALONE, MuonConfig(), FP32(), sdpa)
