"""Collectives over real gloo ranks."""

import pytest
import torch
from ranks import on_ranks

from pretrain.distributed.world import joined
from pretrain.errors import ConfigError


def check_collectives(world):
    assert world.sum_ints(world.rank, 1, 2**40) == [3, 3, 3 * 2**40]
    assert world.sum_tensor(torch.tensor(0.5 + world.rank, dtype=torch.float64)).item() == 4.5
    messages = world.gather({"rank": world.rank, "text": "ä" * (world.rank * 1000)})
    assert [message["rank"] for message in messages] == [0, 1, 2]
    assert messages[2]["text"] == "ä" * 2000
    world.barrier()


def test_sums_and_messages_over_three_ranks():
    on_ranks(3, check_collectives)


def test_more_ranks_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=2: .* one of the 2 CUDA devices"), joined():
        raise AssertionError("not reached")
