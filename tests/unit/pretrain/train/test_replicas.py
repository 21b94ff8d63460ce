"""Digests of tensors against numpy, and who is named when ranks hold other bits."""

import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rank_threads import on_threads
from toys import ALONE, take_step, toy_strategy

from pretrain.checkpoint.base import WEIGHT, Fragment
from pretrain.errors import ConfigError
from pretrain.train import replicas as module
from pretrain.train.loop import TrainState
from pretrain.train.replicas import Replicas, ReplicasConfig, digests_of

INTEGERS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int32}
KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn]


def by_hand(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the digest in Python's own integers."""
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    values = [int(value) for value in np.frombuffer(raw, INTEGERS[tensor.element_size()])]
    sums = sum(values), sum((2 * place + 1) * value for place, value in enumerate(values))
    return tuple((each + 2**63) % 2**64 - 2**63 for each in sums)


@pytest.mark.parametrize("block", [7, 64, 1 << 22])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_digests_are_those_of_whole_numbers(kind, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    tensors = [(torch.randn(size) * 99).to(kind) for size in (1, 6, 7, 129)]
    assert digests_of(tensors) == [by_hand(tensor) for tensor in tensors]
    assert digests_of([torch.empty(0, dtype=kind)]) == [(0, 0)]


def flipped(tensor: torch.Tensor, *bits: int) -> torch.Tensor:
    """Return a copy in which bits, counted over the whole tensor, are the other way round."""
    raw = tensor.clone().view(torch.uint8)
    for bit in bits:
        raw[bit // 8] ^= 1 << bit % 8
    return raw.view(tensor.dtype)


def test_every_flip_every_pair_of_flips_and_every_exchange_shows(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    draw = random.Random(3)
    for kind in (torch.float32, torch.bfloat16):
        tensor = torch.randn(37, generator=torch.Generator().manual_seed(1)).to(kind)
        bits = 37 * 8 * tensor.element_size()
        seen = digests_of([tensor])
        for bit in range(bits):
            assert digests_of([flipped(tensor, bit)]) != seen, bit
        for pair in (draw.sample(range(bits), 2) for _ in range(400)):
            assert digests_of([flipped(tensor, *pair)]) != seen, pair
        for one, other in (draw.sample(range(37), 2) for _ in range(200)):
            swapped = tensor.clone()
            swapped[[one, other]] = tensor[[other, one]]
            assert digests_of([swapped]) != seen or tensor[one] == tensor[other], (one, other)


class Held:
    """A strategy that holds two tensors, the second one cut into as many parts as there are ranks in a replica."""

    def __init__(self, rank: int, ranks_of_replica: int = 1) -> None:
        part = rank % ranks_of_replica
        self.weight, self.moment = torch.arange(5.0), torch.arange(7.0) + part
        self.start = 7 * part

    def replicated(self):
        yield Fragment("table", WEIGHT, (5,), 0, self.weight)
        yield Fragment("table", "exp_avg", (70,), self.start, self.moment)


def differences(size: int, *wrong: tuple[int, str], ranks_of_replica: int = 1) -> list[str | None]:
    """Return what each rank is told after a bit has flipped in tensors of some ranks."""

    def body(world):
        held = Held(world.rank, ranks_of_replica)
        for rank, name in wrong:
            if rank == world.rank:
                setattr(held, name, flipped(getattr(held, name), 3 + 40 * rank))
        return Replicas(ReplicasConfig(), held, TrainState(step=12), world).difference()

    return on_threads(size, body)


def the_one(found: list[str | None]) -> str:
    assert len(set(found)) == 1, "all ranks raise alike"
    return found[0]


def test_equal_replicas_have_no_difference(caplog):
    caplog.set_level(logging.INFO)
    assert the_one(differences(3)) is None
    assert the_one(differences(4, ranks_of_replica=2)) is None
    assert not caplog.records


def test_a_majority_says_who_is_wrong():
    said = the_one(differences(3, (2, "moment")))
    assert "step 12: replicas are not equal: rank 2 on host " in said
    assert "differs from the others in table (exp_avg)." in said
    assert "rank 0" not in said and "Nothing of this step is saved" in said
    said = the_one(differences(4, (0, "weight"), (0, "moment")))
    assert "rank 0 on host " in said and "in table (weight), the first of 2 tensors" in said and "rank 1" not in said


def test_without_a_majority_all_are_named():
    said = the_one(differences(2, (1, "weight")))
    assert "rank 0 on host" in said and "and rank 1 on host" in said and "no majority" in said
    said = the_one(differences(4, (1, "weight"), ranks_of_replica=2))
    assert "rank 1 on host" in said and "and rank 3 on host" in said and "rank 2" not in said
    assert "rank 0 on host" in the_one(differences(3, (1, "weight"), (2, "weight"))), "three that differ"


def test_ranks_that_hold_nothing_alike_say_so_once(caplog):
    caplog.set_level(logging.INFO)

    def body(world):
        replicas = Replicas(ReplicasConfig(), SimpleNamespace(replicated=lambda: iter(())), TrainState(), world)
        for step in (3, 5):
            replicas.state.step = step
            assert replicas.difference() is None

    on_threads(2, body)
    [record] = caplog.records
    assert "no two ranks hold the same weights" in record.message


def test_when_they_are_compared():
    def due(step, **settings):
        return Replicas(ReplicasConfig(**settings), Held(0), TrainState(step=step), ALONE).is_due

    assert due(2000) and due(30, every=10) and not due(31, every=10)
    assert not due(30, every=0) and not due(30, every=10, check=False)
    with pytest.raises(ConfigError, match=r"replicas.every=-1: 1 or more"):
        ReplicasConfig(every=-1)


def test_the_whole_state_of_a_replica_is_compared():
    toy, strategy = toy_strategy()
    take_step(toy, strategy, 1)
    held = {(fragment.name, fragment.kind): fragment.data for fragment in strategy.replicated()}
    saved = {(fragment.name, fragment.kind): fragment.data for fragment in strategy.fragments()}
    assert held.keys() == saved.keys() and {kind for _, kind in held} > {WEIGHT, "exp_avg", "exp_avg_sq"}
    assert all(held[key].data_ptr() == saved[key].data_ptr() for key in held), "views, not copies"
