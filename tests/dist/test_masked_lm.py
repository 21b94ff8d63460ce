"""Every strategy trains an encoder as plain torch does: tied embedding, bias on the logits, sentence head."""

from functools import partial

import pytest
import torch
from equivalence import SEQUENCES, build_masked, pack_masked, reference, save, sequences, start, stored, strategies, train
from ranks import on_ranks

from pretrain.checkpoint import restore, shapes_of
from pretrain.objectives.pairs import Sentences

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

STEPS = 10
NAMES = ["ddp", "zero1", "zero2", "zero3", "zero3+offload", "zero3+recompute", "fsdp2", "hsdp"]


def assert_weights(step, weights):
    tensors = stored(step)
    assert {key for key in tensors if key.startswith("weight ")} == {f"weight {name}" for name in weights}
    for name, value in weights.items():
        torch.testing.assert_close(tensors[f"weight {name}"], value, rtol=0, atol=1e-4)


def check_steps(world, folder, sentences, expected, weights):
    make = partial(build_masked, sentences)
    for name in NAMES:
        for micro in (1, SEQUENCES // world.size):
            _, wrapped, strategy = start(world, strategies(world.size)[name], make=make)
            course = train(world, wrapped, strategy, range(STEPS), micro, join=pack_masked)
            assert course.losses == pytest.approx(expected.losses, abs=1e-5), (name, world.size, micro)
            assert course.norms == pytest.approx(expected.norms, rel=1e-4), (name, world.size, micro)
        assert_weights(save(world, strategy, folder / name, STEPS), weights)


@pytest.mark.parametrize("sentences", [Sentences.none, Sentences.nsp])
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_strategy_takes_the_steps_of_plain_torch(tmp_path, sentences, ranks):
    micros = [pack_masked([document]) for step in range(STEPS) for document in sequences(step)]
    assert sum(not batch.num_targets for batch in micros) > STEPS, "many micro-batches have no masked token"
    on_ranks(ranks, check_steps, tmp_path, sentences, *reference(STEPS, partial(build_masked, sentences), pack_masked))


def write(world, folder, names):
    for name in names:
        _, wrapped, strategy = start(world, strategies(world.size)[name], make=build_masked)
        train(world, wrapped, strategy, range(3), 2, join=pack_masked)
        save(world, strategy, folder / name, 3)


def read(world, folder, moves, expected):
    for one, other in moves:
        step = folder / one / "step-00000003"
        _, wrapped, strategy = start(world, strategies(world.size)[other], make=build_masked)
        restore(step, shapes_of(build_masked()), strategy)
        source, moved = stored(step), stored(save(world, strategy, folder / f"{one} to {other}", 3))
        assert source.keys() == moved.keys(), (one, other)
        assert all(torch.equal(source[key], moved[key]) for key in source), (one, other)
        course = train(world, wrapped, strategy, range(3, STEPS), 2, join=pack_masked)
        assert course.losses == pytest.approx(expected.losses[3:], abs=1e-5), (one, other)


def test_a_checkpoint_moves_between_replicas_and_shards_bit_for_bit(tmp_path):
    expected, _ = reference(STEPS, build_masked, pack_masked)
    on_ranks(2, write, tmp_path, ["ddp", "zero3", "fsdp2"])
    moves = [("ddp", "zero3"), ("ddp", "fsdp2"), ("zero3", "ddp"), ("zero3", "fsdp2"), ("fsdp2", "zero3")]
    on_ranks(3, read, tmp_path, moves, expected)
