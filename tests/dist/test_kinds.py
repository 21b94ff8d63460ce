"""Every strategy trains encoders and encoder-decoders as plain torch does.

Encoders have a tied embedding, a bias on the logits and a sentence head, or a table of distances; encoder-decoders a
table of tokens on both sides, tables of positions or distances, and two streams.
"""

from functools import partial

import pytest
import torch
from equivalence import (
    BART,
    DEBERTA,
    T5,
    build_masked,
    build_pairs,
    pack_masked,
    pack_pairs,
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
from pretrain.data.batch import Batch
from pretrain.objectives.sentence_pairs import Sentences
from pretrain.strategy.compile import CompileBlock
from pretrain.strategy.precision import BF16

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

STEPS, MANY, EVALUATED_AFTER, COMPILED = 8, 20, 2, 2
SHORT = 4  # steps in `make test`
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

KINDS = {
    "encoder": (partial(build_masked, Sentences.none), pack_masked),
    "encoder of pairs": (partial(build_masked, Sentences.nsp), pack_masked),
    "DeBERTa": (partial(build_masked, Sentences.none, **DEBERTA), pack_masked),
    "T5": (partial(build_pairs, T5), pack_pairs),
    "BART": (partial(build_pairs, BART), pack_pairs),
    "encoder, untied": (partial(build_masked, Sentences.nsp, tie_embeddings=False), pack_masked),
    "T5, untied": (partial(build_pairs, {**T5, "head_scale": False, "tie_embeddings": False}), pack_pairs),
}


def evaluate(world, wrapped, join) -> float:
    """Return the loss of a batch that the first rank has, while the others have nothing left to evaluate."""
    batch = join(sequences(99)) if world.is_first else Batch.empty(source=join is pack_pairs)
    wrapped.eval()
    with torch.no_grad():
        nll = wrapped(batch).nll
    wrapped.train()
    return world.sum_tensor(nll.double()).item()


def check_steps(world, folder, names, micros, kind, steps, expected, weights):
    evaluated, (make, join) = [], KINDS[kind]
    for name in names:
        for micro in micros:
            _, wrapped, strategy = start(world, strategies(world.size)[name], make=make)
            first = train(world, wrapped, strategy, range(EVALUATED_AFTER), micro, join=join)
            evaluated.append(evaluate(world, wrapped, join))
            then = train(world, wrapped, strategy, range(EVALUATED_AFTER, steps), micro, join=join)
            assert first.losses + then.losses == pytest.approx(expected.losses, abs=1e-5), (name, world.size, micro)
            assert first.norms + then.norms == pytest.approx(expected.norms, rel=1e-4), (name, world.size, micro)
        tensors = stored(save(world, strategy, folder / name, steps))
        assert {key for key in tensors if key.startswith("weight ")} == {f"weight {key}" for key in weights}
        for key, value in weights.items():
            torch.testing.assert_close(tensors[f"weight {key}"], value, rtol=0, atol=1e-4)
    assert evaluated == pytest.approx([evaluated[0]] * len(evaluated), rel=1e-5)


@pytest.mark.parametrize(
    ("ranks", "names", "micros", "kind", "steps"),
    [
        (2, FEW, [1], "encoder of pairs", SHORT),
        (2, ["zero3+recompute", "fsdp2+recompute"], [3], "T5", SHORT),
        pytest.param(2, ALL, [1, 6], "encoder", STEPS, marks=pytest.mark.slow),
        pytest.param(3, ALL, [3], "encoder of pairs", STEPS, marks=pytest.mark.slow),
        pytest.param(2, ALL, [4], "T5", MANY, marks=pytest.mark.slow),
        pytest.param(3, FEW, [3], "BART", MANY, marks=pytest.mark.slow),
        pytest.param(2, ALL, [3], "DeBERTa", STEPS, marks=pytest.mark.slow),
        pytest.param(2, ["fsdp2", "fsdp2+recompute"], [3], "encoder, untied", STEPS, marks=pytest.mark.slow),
        pytest.param(3, ["fsdp2", "hsdp"], [2], "T5, untied", STEPS, marks=pytest.mark.slow),
    ],
)
def test_every_strategy_takes_the_steps_of_plain_torch(tmp_path, ranks, names, micros, kind, steps):
    singles = [pack_masked([document]) for step in range(STEPS) for document in sequences(step)]
    assert sum(not batch.num_targets for batch in singles) > STEPS, "many micro-batches have no masked token"
    on_ranks(ranks, check_steps, tmp_path, names, micros, kind, steps, *reference(steps, *KINDS[kind]))


def check_bf16(world, make, join, expected):
    for name in FEW:
        _, wrapped, strategy = start(world, strategies(world.size)[name], BF16(), make=make)
        course = train(world, wrapped, strategy, range(STEPS), 2, join=join)
        assert course.losses == pytest.approx(expected.losses, abs=0.05), name
        assert course.norms == pytest.approx(expected.norms, rel=0.05), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder of pairs", "T5"])
def test_every_strategy_follows_in_bf16(kind):
    on_ranks(2, check_bf16, *KINDS[kind], reference(STEPS, *KINDS[kind])[0])


def check_compiled(world, make, join, expected):
    """Blocks compiled for sequences of any lengths, by the tracer and the differentiation of the usual compiler."""
    from torch._dynamo.utils import counters

    torch.compile = partial(torch.compile, backend="aot_eager")  # without its C++, which takes minutes
    _, wrapped, strategy = start(world, strategies(world.size)["fsdp2"], make=make, compilation=CompileBlock())
    course = train(world, wrapped, strategy, range(COMPILED), 6, join=join)
    assert counters["stats"]["unique_graphs"] > 0
    assert course.losses == pytest.approx(expected.losses, abs=1e-5)
    assert course.norms == pytest.approx(expected.norms, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["T5", "DeBERTa"])
def test_compiled_blocks_take_the_steps_of_plain_torch(kind):
    on_ranks(2, check_compiled, *KINDS[kind], reference(COMPILED, *KINDS[kind])[0])


def write(world, folder, names, make, join):
    for name in names:
        _, wrapped, strategy = start(world, strategies(world.size)[name], make=make)
        train(world, wrapped, strategy, range(3), 2, join=join)
        save(world, strategy, folder / name, 3)


def read(world, folder, moves, make, join, expected):
    for one, other in moves:
        step = folder / one / "step-00000003"
        _, wrapped, strategy = start(world, strategies(world.size)[other], make=make)
        restore(step, shapes_of(make()), strategy)
        source, moved = stored(step), stored(save(world, strategy, folder / f"{one} to {other}", 3))
        assert source.keys() == moved.keys(), (one, other)
        assert all(torch.equal(source[key], moved[key]) for key in source), (one, other)
        course = train(world, wrapped, strategy, range(3, STEPS), 2, join=join)
        assert course.losses == pytest.approx(expected.losses[3:], abs=1e-5), (one, other)
        assert course.norms == pytest.approx(expected.norms[3:], rel=1e-4), (one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder of pairs", "T5"])
def test_a_checkpoint_moves_between_replicas_and_shards_bit_for_bit(tmp_path, kind):
    expected, _ = reference(STEPS, *KINDS[kind])
    on_ranks(2, write, tmp_path, ["ddp", "zero3", "fsdp2"], *KINDS[kind])
    moves = [("ddp", "zero3"), ("ddp", "fsdp2"), ("zero3", "ddp"), ("zero3", "fsdp2"), ("fsdp2", "zero3")]
    on_ranks(3, read, tmp_path, moves, *KINDS[kind], expected)
