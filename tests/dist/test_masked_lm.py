"""Every strategy trains an encoder as plain torch does: tied embedding, bias on the logits, sentence head."""

from functools import partial

import pytest
import torch
from equivalence import (
    build_masked,
    pack,
    pack_masked,
    reference,
    save,
    sequences,
    start,
    stored,
    strategies,
    train,
)
from ranks import on_ranks

from pretrain.checkpoint.load import restore, shapes_of
from pretrain.objectives.sentence_pairs import Sentences
from pretrain.strategy.precision import BF16

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

STEPS, EVALUATED_AFTER = 8, 2
ALL = [
    "ddp",
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero3+offload",
    "zero3+recompute",
    "fsdp2",
    "fsdp2+recompute",
    "hsdp",
]
FEW = ["ddp", "zero2", "zero3", "fsdp2"]


def evaluate(world, wrapped) -> float:
    """Return the loss of a batch that the first rank has, while the others have nothing left to evaluate."""
    batch = pack_masked(sequences(99)) if world.is_first else pack([torch.zeros(1, dtype=torch.int64)])
    wrapped.eval()
    with torch.no_grad():
        nll = wrapped(batch).nll
    wrapped.train()
    return world.sum_tensor(nll.double()).item()


def check_steps(world, folder, names, micros, sentences, expected, weights):
    evaluated = []
    for name in names:
        for micro in micros:
            _, wrapped, strategy = start(world, strategies(world.size)[name], make=partial(build_masked, sentences))
            first = train(world, wrapped, strategy, range(EVALUATED_AFTER), micro, join=pack_masked)
            evaluated.append(evaluate(world, wrapped))
            then = train(world, wrapped, strategy, range(EVALUATED_AFTER, STEPS), micro, join=pack_masked)
            assert first.losses + then.losses == pytest.approx(expected.losses, abs=1e-5), (name, world.size, micro)
            assert first.norms + then.norms == pytest.approx(expected.norms, rel=1e-4), (name, world.size, micro)
        tensors = stored(save(world, strategy, folder / name, STEPS))
        assert {key for key in tensors if key.startswith("weight ")} == {f"weight {key}" for key in weights}
        for key, value in weights.items():
            torch.testing.assert_close(tensors[f"weight {key}"], value, rtol=0, atol=1e-4)
    assert evaluated == pytest.approx([evaluated[0]] * len(evaluated), rel=1e-5)


@pytest.mark.parametrize(
    ("ranks", "names", "micros", "sentences"),
    [
        (2, FEW, [1], Sentences.nsp),
        pytest.param(2, ALL, [1, 6], Sentences.none, marks=pytest.mark.slow),
        pytest.param(3, ALL, [2, 4], Sentences.nsp, marks=pytest.mark.slow),
    ],
)
def test_every_strategy_takes_the_steps_of_plain_torch(tmp_path, ranks, names, micros, sentences):
    singles = [pack_masked([document]) for step in range(STEPS) for document in sequences(step)]
    assert sum(not batch.num_targets for batch in singles) > STEPS, "many micro-batches have no masked token"
    expected = reference(STEPS, partial(build_masked, sentences), pack_masked)
    on_ranks(ranks, check_steps, tmp_path, names, micros, sentences, *expected)


def check_bf16(world, expected):
    for name in FEW:
        _, wrapped, strategy = start(world, strategies(world.size)[name], BF16(), make=build_masked)
        course = train(world, wrapped, strategy, range(STEPS), 2, join=pack_masked)
        assert course.losses == pytest.approx(expected.losses, abs=0.05), name
        assert course.norms == pytest.approx(expected.norms, rel=0.05), name


@pytest.mark.slow
def test_every_strategy_follows_in_bf16():
    on_ranks(2, check_bf16, reference(STEPS, build_masked, pack_masked)[0])


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
        assert course.norms == pytest.approx(expected.norms[3:], rel=1e-4), (one, other)


@pytest.mark.slow
def test_a_checkpoint_moves_between_replicas_and_shards_bit_for_bit(tmp_path):
    expected, _ = reference(STEPS, build_masked, pack_masked)
    on_ranks(2, write, tmp_path, ["ddp", "zero3", "fsdp2"])
    moves = [("ddp", "zero3"), ("ddp", "fsdp2"), ("zero3", "ddp"), ("zero3", "fsdp2"), ("fsdp2", "zero3")]
    on_ranks(3, read, tmp_path, moves, expected)
