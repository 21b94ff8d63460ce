"""A flipped bit of one rank under every engine, and in a whole run: named before the next save, and not saved."""

import json
import os

import pytest
import torch
from equivalence import MUON, OPTIM, SEQUENCES, start, strategies, train
from forks import Forked
from poisoned import FLIPPED
from ranks import end, environments, on_ranks, tiny

from pretrain.checkpoint.base import WEIGHT
from pretrain.models.base import named_tensors
from pretrain.train.loop import TrainState
from pretrain.train.replicas import Replicas, ReplicasConfig

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

NAME = "model.blocks.1.mlp.up.weight"


def flip(tensor: torch.Tensor) -> None:
    """Turn the lowest bit of an element in the middle of what this rank holds of a tensor: twice is nothing."""
    local = tensor.detach()
    local = local.to_local() if hasattr(local, "to_local") else local
    raw = local.view(-1).view(torch.uint8)
    raw[raw.numel() // 2] ^= 1


def check_flips(world, name, wrong, others, moments, optim):
    """Flip a bit of `wrong`, and see that it is told from the `others` that hold the same."""
    module, wrapped, strategy = start(world, strategies(world.size)[name], optim=optim)
    train(world, wrapped, strategy, range(2), SEQUENCES // world.size)
    parameter = dict(named_tensors(module))[NAME]
    state, held = (
        TrainState(),
        {WEIGHT: parameter} | {kind: strategy.optimizer.state[parameter][kind] for kind in moments},
    )
    replicas = Replicas(ReplicasConfig(), strategy, state, world)
    for kind, tensor in held.items():
        state.step += 1
        assert replicas.difference() is None, "steps leave replicas equal"
        if world.rank == wrong:
            flip(tensor)
        state.step += 1
        said = replicas.difference() or ""
        assert f"{NAME} ({kind})" in said and f"rank {wrong} on host" in said, said
        named = {rank for rank in range(world.size) if f"rank {rank} on" in said}
        assert named == ({wrong} if len(others) > 1 else {wrong, *others}), said
        if world.rank == wrong:
            flip(tensor)
    state.step += 1
    assert replicas.difference() is None
    if not others:
        assert not list(strategy.replicated())


def check_nothing_alike(world, name):
    _, wrapped, strategy = start(world, strategies(world.size)[name])
    train(world, wrapped, strategy, range(1), SEQUENCES // world.size)
    assert not list(strategy.replicated())
    assert Replicas(ReplicasConfig(), strategy, TrainState(), world).difference() is None


ADAMW = ["exp_avg", "exp_avg_sq"]


def check_engines(world):
    if world.size == 4:
        check_flips(world, "hsdp", 3, [1], ADAMW, OPTIM)
        check_flips(world, "hsdp", 0, [2], ["momentum_buffer"], MUON)
    for name in ("ddp", "zero0"):
        check_flips(world, name, 1, {*range(world.size)} - {1}, ADAMW, OPTIM)
    for name in ("zero1", "zero2"):  # moments lie in shards that one rank holds
        check_flips(world, name, 1, {*range(world.size)} - {1}, [], OPTIM)
    check_flips(world, "ddp", 0, {*range(1, world.size)}, ["momentum_buffer"], MUON)
    for name in ("zero3", "fsdp2"):
        check_nothing_alike(world, name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_flipped_bit_is_named_under_every_engine(ranks):
    on_ranks(ranks, check_engines)


def test_a_run_ends_before_it_saves_a_replica_that_differs(place):
    flip = "hooks.flipping={step:7,rank:1,weight:model.blocks.1.mlp.up.weight,bit:21}"  # rounding may heal a lower one
    overrides = tiny("flipped", "train.micro_batch_size=4", "train.steps=12", "eval.every=0", f"+{flip}")
    started = [Forked("-c", FLIPPED, *overrides, cwd=place, env=os.environ | own) for own in environments(2)]
    assert end(started) == [5, 5], started[0].stderr
    assert "step 10: replicas are not equal: rank 0 on host" in started[0].stderr
    assert f"differ in {NAME} (weight), and no majority says which" in started[0].stderr
    directory = place / "runs" / "flipped"
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000005"]
    assert json.loads((directory / "run.json").read_text())["exit"] == 5
