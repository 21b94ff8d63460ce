"""The peak of all ranks together: what the share of the hardware's peak is measured against."""

import pytest
import torch

from pretrain.distributed.world import World
from pretrain.train.metrics import Throughput
from pretrain.train.peaks import peak_of_all

NAMES = ["NVIDIA L40S", "NVIDIA A10", "A device that nobody has heard of"]  # of the CUDA devices of a machine


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAMES[device.index])


def world(size, device):
    return World(rank=0, size=size, device=torch.device("cuda", device))


@pytest.mark.parametrize(
    ("device", "dtype", "tera"),
    [(0, torch.bfloat16, 362), (0, torch.float32, 91.6), (1, torch.bfloat16, 125), (1, torch.float32, 31.2)],
)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_ranks_add_up_and_each_is_taken_to_be_like_this_one(size, device, dtype, tera):
    assert peak_of_all(world(size, device), dtype) == pytest.approx(size * tera * 1e12, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_there_is_none_where_it_is_not_known_and_of_a_gpu_that_is_said(size, caplog):
    caplog.set_level("INFO", "pretrain")
    assert peak_of_all(World(rank=0, size=size, device=torch.device("cpu")), torch.float32) is None
    assert not caplog.text
    assert peak_of_all(world(size, 2), torch.bfloat16) is None
    assert f"{NAMES[2]}: no published peak for torch.bfloat16" in caplog.text


def test_as_many_tokens_on_twice_the_ranks_are_half_the_share():
    shares = []
    for size in (3, 6):
        now = iter([0.0, 2.0])
        peak = peak_of_all(world(size, 0), torch.bfloat16)
        meter = Throughput(step=0, tokens=0, flops_per_token=1e9, peak_flops=peak, clock=lambda now=now: next(now))
        shares.append(meter.lap(1, 362_000)["mfu"])
    assert shares == pytest.approx([0.181e15 / (3 * 362e12), 0.181e15 / (6 * 362e12)], rel=1e-12)
