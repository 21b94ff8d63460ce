"""Every strategy takes the steps that plain torch takes, on any number of ranks, and resumes what any other saved."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from equivalence import MUON, OPTIM, SEQUENCES, SHAPES, build_wide, reference, save, start, stored, strategies, train
from ranks import on_ranks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.checkpoint.load import restore
from pretrain.strategy.base import ReduceDtype
from pretrain.strategy.precision import BF16

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

STEPS, SHORT, SOON = 20, 4, 2  # of the law, of what runs in `make test`, and before the first look at the weights
MOVED_AFTER, CARRIED_ON = 5, 4  # steps before a move and after it

OPTIMIZERS = {"adamw": OPTIM, "muon": MUON}
ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3", "fsdp2", "hsdp")
KNOWN = {"zero3+recompute", "fsdp2+recompute"}  # in `make test` these take the steps of test_kinds
RESUMED = {"ddp", "zero2", "zero3", "zero3+offload", "fsdp2"}  # in `make test`


def slow_unless(fast, values):
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def with_ranks(*few: int, slow: tuple[int, ...]):
    return pytest.mark.parametrize("ranks", slow_unless(few, [*few, *slow]))


def assert_weights(step, weights, tolerance):
    tensors = stored(step)
    assert {key for key in tensors if key.startswith("weight ")} == {f"weight {name}" for name in SHAPES}
    for name, value in weights.items():
        torch.testing.assert_close(tensors[f"weight {name}"], value, rtol=0, atol=tolerance)


# To start ranks takes longer than their steps: those that are there are asked for more than one law.
def check_steps(world, folder, name, steps, soon, expected, weights):
    share = SEQUENCES // world.size
    for micro in (share // 3,) if "+" in name else (share // 3, share):
        _, wrapped, strategy = start(world, strategies(world.size)[name])
        first = train(world, wrapped, strategy, range(SOON), micro)
        assert_weights(save(world, strategy, folder / f"{micro}", SOON), soon, 1e-6)
        then = train(world, wrapped, strategy, range(SOON, steps), micro)
        assert first.losses + then.losses == pytest.approx(expected.losses, abs=1e-5), micro
        assert first.norms + then.norms == pytest.approx(expected.norms, rel=1e-4), micro
    assert_weights(save(world, strategy, folder / "last", steps), weights, 1e-4)
    check_bf16(world, name, expected)


@with_ranks(2, slow=(1, 4))
@pytest.mark.parametrize("name", slow_unless(strategies(2).keys() - KNOWN, strategies(2)))
def test_every_strategy_takes_the_steps_of_plain_torch_and_follows_in_bf16(tmp_path, name, ranks):
    steps = STEPS if ranks == 4 else SHORT
    on_ranks(ranks, check_steps, tmp_path, name, steps, reference(SOON)[1], *reference(steps))


def check_norms(world, steps, expected):
    for name in ENGINES:
        _, wrapped, strategy = start(world, strategies(world.size)[name], make=build_wide)
        course = train(world, wrapped, strategy, range(steps), SEQUENCES // world.size)
        assert course.norms == pytest.approx(expected.norms, rel=1e-6), name
        assert course.losses == pytest.approx(expected.losses, rel=1e-6), name


@with_ranks(2, slow=(1, 3, 4))
def test_gradient_norms_are_those_of_float64(ranks):
    steps = SHORT if ranks == 2 else STEPS
    on_ranks(ranks, check_norms, steps, reference(steps, build_wide, dtype=torch.float64)[0])


class Wire(TorchDispatchMode):
    """Notes the dtypes of the gradients that collectives add up, whoever calls them."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "c10d" and "reduce" in operator.__name__:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.dtypes |= {tensor.dtype for tensor in tensors if tensor.numel() > 16 and tensor.is_floating_point()}
        return operator(*args, **(kwargs or {}))


def check_wire(world, expected):
    for name in ENGINES:
        for sent in ReduceDtype:
            cfg = replace(strategies(world.size)[name], reduce_dtype=sent)
            _, wrapped, strategy = start(world, cfg, BF16())
            with Wire() as wire:
                course = train(world, wrapped, strategy, range(1), SEQUENCES // world.size // 2)
            assert wire.dtypes == {sent.dtype}, f"{name}, {sent}"
            assert course.norms == pytest.approx(expected.norms, rel=0.05), f"{name}, {sent}"


@with_ranks(2, slow=(3,))
def test_gradients_travel_in_the_dtype_of_the_setting(ranks):
    on_ranks(ranks, check_wire, reference(1)[0])


def check_bf16(world, name, expected):
    _, wrapped, strategy = start(world, strategies(world.size)[name], BF16())
    course = train(world, wrapped, strategy, range(SHORT), SEQUENCES // world.size // 2)
    assert course.losses == pytest.approx(expected.losses[:SHORT], abs=0.05)
    assert course.norms == pytest.approx(expected.norms[:SHORT], rel=0.05)


def check_resume(world, folder, name):
    cfg = strategies(world.size)[name]
    _, wrapped, strategy = start(world, cfg)
    train(world, wrapped, strategy, range(2), 3)
    step = save(world, strategy, folder / "interrupted", 2)
    straight = train(world, wrapped, strategy, range(2, 4), 3)
    _, wrapped, strategy = start(world, cfg)
    restore(step, SHAPES, strategy)
    assert train(world, wrapped, strategy, range(2, 4), 3) == straight, "not bit for bit"
    check_skips(world, folder, name)


def check_skips(world, folder, name, optim=OPTIM):
    _, wrapped, strategy = start(world, strategies(world.size)[name], optim=optim)
    train(world, wrapped, strategy, range(2), 2)
    before = stored(save(world, strategy, folder, 2))
    [norm] = train(world, wrapped, strategy, range(2, 3), 2, factor=float("nan")).norms
    assert norm != norm or norm == float("inf")
    after = stored(save(world, strategy, folder, 3))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    train(world, wrapped, strategy, range(2, 3), 2)
    again = stored(save(world, strategy, folder, 4))
    assert not torch.equal(before["weight model.embedding.weight"], again["weight model.embedding.weight"])


@pytest.mark.parametrize("name", slow_unless(RESUMED, strategies(2)))
def test_a_resumed_run_is_the_same_bit_for_bit_and_a_broken_gradient_changes_nothing(tmp_path, name):
    on_ranks(2, check_resume, tmp_path, name)


def check_muon(world, folder, soon, expected, weights):
    for name in (*ENGINES, "zero3+offload"):
        _, wrapped, strategy = start(world, strategies(world.size)[name], optim=MUON)
        course = train(world, wrapped, strategy, range(1), 2)
        assert_weights(save(world, strategy, folder / name, 1), soon, 1e-6)
        later = train(world, wrapped, strategy, range(1, SHORT), 2)
        assert course.losses + later.losses == pytest.approx(expected.losses, abs=1e-5), name
        assert course.norms + later.norms == pytest.approx(expected.norms, rel=1e-4), name
        assert_weights(save(world, strategy, folder / name, SHORT), weights, 1e-5)
        check_skips(world, folder / f"{name} skips", name, MUON)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_muon_takes_the_steps_of_one_rank_under_every_strategy(tmp_path, ranks):
    on_ranks(ranks, check_muon, tmp_path, reference(1, optim=MUON)[1], *reference(SHORT, optim=MUON))


def moves(optim) -> list[tuple[str, int, str, int]]:
    """Every strategy to every other and itself, each time to another number of ranks; each number occurs both ways."""
    names = ["ddp", "zero1", "zero2", "zero3", "fsdp2"] if optim is OPTIM else ["ddp", "zero1", "fsdp2", "hsdp"]
    counts = itertools.cycle(itertools.permutations((1, 2, 3, 4), 2))
    pairs = itertools.product(names, names)
    return [(one, before, other, after) for one, other in pairs for before, after in [next(counts)]]


def write_all(world, folder):
    for kind, optim in OPTIMIZERS.items():
        for name in sorted({one for one, ranks, _, _ in moves(optim) if ranks == world.size}):
            _, wrapped, strategy = start(world, strategies(world.size)[name], optim=optim)
            train(world, wrapped, strategy, range(MOVED_AFTER), SEQUENCES // world.size)
            save(world, strategy, folder / kind / f"{name}-{world.size}", MOVED_AFTER)


def check_move(world, folder, kind, move, expected):
    one, before, other, after = move
    label = f"{kind}: {one} on {before} ranks to {other} on {after}"
    step = folder / kind / f"{one}-{before}" / f"step-{MOVED_AFTER:08d}"
    _, wrapped, strategy = start(world, strategies(world.size)[other], optim=OPTIMIZERS[kind])
    restore(step, SHAPES, strategy)
    source, moved = stored(step), stored(save(world, strategy, folder / label, MOVED_AFTER))
    assert source.keys() == moved.keys(), label
    assert all(torch.equal(source[key], moved[key]) for key in source), label
    course = train(world, wrapped, strategy, range(MOVED_AFTER, MOVED_AFTER + CARRIED_ON), SEQUENCES // world.size)
    assert course.losses == pytest.approx(expected.losses[MOVED_AFTER:], abs=1e-5), label
    assert course.norms == pytest.approx(expected.norms[MOVED_AFTER:], rel=1e-4), label


def read_all(world, folder, expected):
    for kind, optim in OPTIMIZERS.items():
        for move in moves(optim):
            if move[-1] == world.size:
                check_move(world, folder, kind, move, expected[kind])


@pytest.mark.slow
def test_any_strategy_resumes_what_any_other_saved_on_any_number_of_ranks(tmp_path: Path):
    steps = MOVED_AFTER + CARRIED_ON
    expected = {kind: reference(steps, optim=optim)[0] for kind, optim in OPTIMIZERS.items()}
    for ranks in (1, 2, 3, 4):
        on_ranks(ranks, write_all, tmp_path)
    for ranks in (1, 2, 3, 4):
        on_ranks(ranks, read_all, tmp_path, expected)
