"""The loop: what it asks of engine, schedule and hooks, step by step; and that it reads nothing back between logs."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from looped import LENGTHS, STEPS, take_steps
from rank_threads import on_threads
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ALONE

from pretrain.data.batch import Batch
from pretrain.errors import Preempted
from pretrain.models.attention.sdpa import sdpa
from pretrain.objectives.base import Loss
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.base import parameter_group
from pretrain.optim.muon import MuonConfig
from pretrain.strategy.base import Update
from pretrain.strategy.precision import BF16, FP16, FP32
from pretrain.train.loop import TrainConfig, TrainState, train


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


@pytest.mark.parametrize("optim", [AdamWConfig(), MuonConfig()])
@pytest.mark.parametrize("precision", [FP32(), BF16(), FP16()])
def test_nothing_is_read_back_between_log_steps(precision, optim):
    with NoReads(), NoLists():
        state, asked = take_steps(ALONE, optim, precision, sdpa)
    assert state.tokens == STEPS * 2 * sum(LENGTHS)
    assert asked == [f"log {STEPS}", f"save {STEPS} True"], "the last save must not fail in silence"


class SGDConfig:
    """An optimizer that knows no flag for steps to skip, as one of a user's own may be."""

    def build(self, module):
        group = parameter_group("all", list(module.parameters()), 0.1, 0.0)
        return torch.optim.SGD([group])


def test_a_step_of_any_other_optimizer_reads_the_norm():
    with NoReads(), pytest.raises(ReadBackError):
        take_steps(ALONE, SGDConfig(), FP32(), sdpa)


class Dropping(nn.Module):
    """Loses 1 nat a target, and notes what a dropout would draw."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, batch):
        self.drawn.append(torch.rand(()).item())
        total = torch.tensor(float(batch.num_targets), requires_grad=True)
        return Loss(total, total.detach(), torch.tensor(0))


class Recording:
    """A strategy, a meter and hooks that note what is asked of them, in one list."""

    log_every, evaluate_every, save_every = 2, 3, 4
    ends_with = None  # the step whose evaluation ends the run

    def __init__(self):
        self.asked = []
        self.meter = SimpleNamespace(
            add=lambda nll, labels: self.asked.append(("add", nll.item())),
            end_step=lambda update, targets: self.asked.append(("end", update.norm.item(), targets)),
        )

    @contextmanager
    def micro_step(self, *, last):
        self.asked.append(("last" if last else "not last",))
        yield

    def backward(self, loss):
        self.asked.append(("backward", loss.item()))

    def step(self, lr_factor, clip_norm):
        self.asked.append(("step", lr_factor, clip_norm))
        return Update(torch.tensor(7.0), torch.tensor(False))

    def settle(self):
        self.asked.append(("settle",))

    def log(self, state):
        self.asked.append(("log", state.step))

    def evaluate(self, state):
        self.asked.append(("evaluate", state.step))

    def save(self, state, *, required):
        self.asked.append(("save", state.step, required))

    def is_due(self, state):
        return state.step % self.save_every == 0

    def end_early(self):
        return self.asked[-1] == ("evaluate", self.ends_with)

    def due(self):
        return [call for call in self.asked if call[0] in ("log", "evaluate", "save")]


def batches(*targets):
    """Return micro-batches with so many targets, and two tokens more than those."""
    return [
        Batch(*[torch.zeros(number + 2, dtype=torch.int64)] * 2, torch.zeros(2), number + 2, torch.zeros(0), number)
        for number in targets
    ]


def loop(steps, *, total, world=ALONE, state=None, module=None, stop_after=None, recording=None, seed=5):
    """Run `steps`; a stop request comes while the data of step number `stop_after`, counted from 1, are read."""
    recording, state, stop = recording or Recording(), state or TrainState(), SimpleNamespace(received=False)

    def arriving():
        for number, micro_batches in enumerate(steps, start=1):
            stop.received |= number == stop_after
            yield micro_batches

    train(
        module or Dropping(),
        recording,
        arriving(),
        lambda step: 0.5**step,
        state,
        cfg=TrainConfig(steps=total, clip_norm=0.3),
        seed=seed,
        world=world,
        hooks=recording,
        stop=stop,
    )
    return recording, state


def test_a_step_divides_by_the_targets_of_all_ranks_and_undoes_the_mean_over_them():
    def body(world):
        own = [[3, 5], [0, 1], [4, 4]][world.rank]
        return loop([batches(*own)], total=9, world=world, state=TrainState(step=2, tokens=100))

    for own, (recording, state) in zip([[3, 5], [0, 1], [4, 4]], on_threads(3, body), strict=True):
        expected = []  # 17 targets over 3 ranks, whose engines average gradients
        for number, targets in enumerate(own):
            expected += [("last" if number else "not last",), ("backward", pytest.approx(targets * 3 / 17))]
            expected += [("add", targets)]
        assert recording.asked == [*expected, ("step", 0.5**2, 0.3), ("end", 7.0, 17), ("settle",), ("evaluate", 3)]
        assert (state.step, state.tokens) == (3, 100 + 17 + 6 * 2)


def test_a_step_without_any_target_is_taken_all_the_same():
    recording, state = loop([batches(0, 0)], total=5)
    assert [call[1] for call in recording.asked if call[0] == "backward"] == [0, 0]
    assert state.step == 1
    assert recording.asked[-2] == ("end", 7.0, 0)


def test_hooks_are_called_when_they_are_due_and_all_of_them_at_the_last_step():
    recording, _ = loop([batches(1)] * 7, total=7)
    due = [("log", 2), ("evaluate", 3), ("log", 4), ("save", 4, False), ("log", 6), ("evaluate", 6)]
    assert recording.due() == [*due, ("log", 7), ("evaluate", 7), ("save", 7, True)]
    assert recording.asked.count(("settle",)) == 7
    assert [call[1] for call in recording.asked if call[0] == "step"] == [0.5**step for step in range(7)]


def test_no_evaluation_is_asked_for_where_there_is_none():
    recording = Recording()
    recording.evaluate_every = 0
    loop([batches(1)] * 3, total=3, recording=recording)
    assert recording.due() == [("log", 2), ("log", 3), ("save", 3, True)]


def test_a_run_that_ends_early_takes_no_further_step_and_saves_this_one():
    recording = Recording()
    recording.ends_with = 3
    loop([batches(1)] * 7, total=7, recording=recording)
    assert recording.due() == [("log", 2), ("evaluate", 3), ("save", 3, True)]


def test_any_rank_that_is_asked_to_stop_stops_all_of_them_with_a_save():
    def body(world):
        recording = Recording()
        with pytest.raises(Preempted, match="step 3 of 7 is saved"):
            loop([batches(1)] * 7, total=7, world=world, stop_after=3 if world.rank == 1 else None, recording=recording)
        return recording.due()

    assert on_threads(2, body) == [[("log", 2), ("evaluate", 3), ("save", 3, True)]] * 2


def test_a_stop_that_comes_within_a_step_is_honoured_with_the_next_one():
    """What ranks tell each other in a step travels before its work: one collective a step, not two."""
    stop, told = SimpleNamespace(received=False), []

    def sum_ints(*values):
        told.append(values)
        return list(values)

    def lr(step):
        stop.received |= step == 2  # within the third step
        return 1.0

    world = SimpleNamespace(rank=0, size=1, device=ALONE.device, sum_ints=sum_ints)
    recording, state, steps = Recording(), TrainState(), [batches(1)] * 7
    options = {"cfg": TrainConfig(steps=7), "seed": 5, "world": world, "hooks": recording, "stop": stop}
    with pytest.raises(Preempted, match="step 4 of 7 is saved"):
        train(Dropping(), recording, steps, lr, state, **options)
    assert told == [(1, 3, 0)] * 3 + [(1, 3, 1)]
    assert recording.due()[-1] == ("save", 4, True)


def test_a_stop_at_the_last_step_is_no_stop():
    recording, state = loop([batches(1)] * 2, total=2, stop_after=2)
    assert state.step == 2 and recording.due()[-1] == ("save", 2, True)


def test_dropout_is_another_at_each_step_and_rank_and_the_same_after_a_resume():
    def drawn(first, rank=0, seed=5):
        module, world = Dropping(), SimpleNamespace(rank=rank, size=1, device=ALONE.device, sum_ints=ALONE.sum_ints)
        loop([batches(1, 1)] * (6 - first), total=6, world=world, state=TrainState(first), module=module, seed=seed)
        return module.drawn

    with torch.random.fork_rng():
        whole = drawn(0)
        assert drawn(4) == whole[8:]
        assert len({*whole, *drawn(0, rank=1), *drawn(0, seed=6)}) == 3 * 12
