"""The memory of tensors against what was allocated, and the words about it."""

import logging

import pytest
import torch
from storages import storages
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.strategy.base import Memory
from pretrain.train.summary import compare_memory

MIB = 2**20


def test_storages_are_counted_once_each_with_their_gradients():
    before = storages()
    weight = torch.ones(300, 7, requires_grad=True)
    views = [weight.detach(), weight[3:5].detach()]
    weight.sum().backward()
    meta = torch.empty(10**9, device="meta")
    sparse = torch.eye(9).to_sparse()
    with FakeTensorMode():
        fake = torch.empty(10**9)
    new = {at: size for at, size in storages().items() if before.get(at) != size}
    assert weight.grad is not None and len(views) == 2 and meta.is_meta and sparse.is_sparse and fake.numel() == 10**9
    assert new[weight.untyped_storage().data_ptr()] == 300 * 7 * 4
    assert new[weight.grad.untyped_storage().data_ptr()] == 300 * 7 * 4
    assert sum(new.values()) < 3 * 300 * 7 * 4, "views, tensors without memory and the like add nothing"


@pytest.mark.parametrize(
    ("held", "level"),
    [(1, "INFO"), (1600, "INFO"), (1600 + 159, "INFO"), (1600 + 161, "WARNING")],
)
def test_only_what_is_far_above_the_prediction_is_a_warning(caplog, held, level):
    caplog.set_level(logging.INFO)
    compare_memory(held * MIB, Memory(400 * MIB, 400 * MIB, 800 * MIB))
    [record] = caplog.records
    assert record.levelname == level
    assert f"tensors of {held:,} MiB on the fullest rank, predicted 1,600 with gradients" in record.message


def test_small_models_do_not_warn(caplog):
    compare_memory(63 * MIB, Memory(4, 4, 8))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
