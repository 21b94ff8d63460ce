"""The guard against outliers: its statistics, what it refuses, what it saves a run, and that a resume is exact."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ALONE, assert_same, state_of, take_step, toy_batch, toy_strategy

from pretrain.checkpoint.load import newest_step, restore, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import ConfigError
from pretrain.guard.base import FiniteConfig
from pretrain.guard.sigma import LEAST_DEVIATION, SigmaConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.precision import BF16, FP16, FP32

STEPS, SPIKE = 60, 30


def judged(guard, *norms):
    return [bool(guard.judge(torch.tensor(norm)).accepted) for norm in norms]


@given(
    norms=st.lists(st.floats(2.0**-40, 2.0**40, width=32), min_size=1, max_size=30),
    decay=st.sampled_from([0.5, 0.97, 0.99]),
)
def test_statistics_are_weighted_means_in_which_older_steps_count_less(norms, decay):
    guard = SigmaConfig(decay=decay).build()
    assert judged(guard, *norms) == [True] * len(norms), "before the end of the warm-up"
    logs = np.log(np.array(norms, dtype=np.float32).astype(np.float64))
    weights = decay ** np.arange(len(norms) - 1, -1, -1, dtype=np.float64)
    mean = np.average(logs, weights=weights)
    variance = np.average((logs - mean) ** 2, weights=weights)
    expected = {"guard_mean": mean, "guard_variance": variance, "guard_count": len(norms)}
    assert guard.state() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_limit_is_so_many_deviations_above_the_mean_and_has_no_counterpart_below_it():
    cfg = SigmaConfig(sigma=3, warmup=4, decay=0.9)
    usual = [1.0, 2.0, 1.5, 0.5]
    guard = cfg.build()
    judged(guard, *usual)
    state = guard.state()
    mean, deviation = state["guard_mean"], math.sqrt(state["guard_variance"])
    limit = math.exp(mean + 3 * deviation)
    for norm, accepted in ((limit * 1.001, False), (limit * 0.999, True), (1e-9, True), (0.0, True)):
        guard.load_state(state)
        verdict = guard.judge(torch.tensor(norm))
        assert verdict.accepted.item() is accepted
        expected = (math.log(norm) - mean) / deviation if norm else -math.inf
        assert verdict.norm_z.item() == pytest.approx(expected, rel=1e-5)
    assert guard.state() == state, "0 teaches nothing"


def test_norms_that_hardly_vary_leave_room_above_them():
    guard = SigmaConfig(sigma=6, warmup=2).build()
    judged(guard, 1.0, 1.0)
    room = math.exp(6 * LEAST_DEVIATION)
    assert judged(guard, room * 1.001, room * 0.999) == [False, True]


def test_nothing_is_learnt_from_what_is_refused_and_numbers_alone_are_accepted():
    guard = SigmaConfig(warmup=3).build()
    assert judged(guard, 1.0, math.nan, math.inf, 2.0) == [True, False, False, True]
    assert guard.state()["guard_count"] == 2
    assert judged(guard, 1e9) == [True], "the third accepted step is the last of the warm-up"
    guard.load_state({})
    judged(guard, 1.0, 1.2, 0.9)
    before = guard.state()
    assert judged(guard, 1e3, math.nan, math.inf) == [False] * 3
    assert guard.state() == before
    assert judged(FiniteConfig().build(), 1e30, math.nan, math.inf) == [True, False, False]


def test_a_state_survives_json_to_the_bit():
    first, second = SigmaConfig(warmup=2).build(), SigmaConfig(warmup=2).build()
    judged(first, 0.1, 0.7, 0.3)
    second.load_state(json.loads(json.dumps(first.state())))
    for norm in (0.31, 0.33, 0.27):
        assert judged(first, norm) == judged(second, norm)
    assert first.state() == second.state()


class NoRead(TorchDispatchMode):
    """Fails when a tensor's value is read back to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waited for a value"
        return func(*args, **(kwargs or {}))


def test_judging_reads_nothing_back():
    guard = SigmaConfig().build()
    with NoRead():
        guard.judge(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma": 0}, "guard.sigma=0: must be above 0"),
        ({"sigma": math.inf}, "guard.sigma=inf: must be above 0, and finite"),
        ({"warmup": 1}, "guard.warmup=1: at least 2 optimizer steps"),
        ({"decay": 1.0}, "guard.decay=1.0: must lie between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SigmaConfig(**values)


def start(guard, precision=None):
    module, strategy = toy_strategy(precision, AdamWConfig(lr=5e-2))
    strategy.guard = guard.build()
    return module, strategy


def take(module, strategy, steps, spike=SPIKE):
    """Take steps, each of a batch of its own; the gradient of one of them is a thousand times too large, and wrong."""
    skipped = []
    for step in steps:
        factor = -1e3 if step == spike else 1.0
        skipped.append(bool(take_step(module, strategy, step % 4, factor, clip_norm=None).skipped))
    return skipped


def loss_of(module):
    with torch.no_grad():
        return sum(float(module(toy_batch(seed)).total) for seed in range(4))


GUARD = SigmaConfig(warmup=10, decay=0.9)


def test_a_spike_costs_one_step_with_the_guard_and_the_run_without():
    losses = {}
    for name, guard, spike in (("clean", GUARD, None), ("guarded", GUARD, SPIKE), ("bare", FiniteConfig(), SPIKE)):
        module, strategy = start(guard)
        skipped = take(module, strategy, range(STEPS), spike)
        assert [step for step, each in enumerate(skipped) if each] == ([SPIKE] if name == "guarded" else [])
        losses[name] = loss_of(module)
    assert losses["guarded"] == pytest.approx(losses["clean"], rel=0.02)
    assert losses["bare"] > 1.2 * losses["clean"]


@pytest.mark.parametrize("precision", [FP32(), BF16(), FP16(initial_scale=64.0)])
@pytest.mark.parametrize("killed_at", [SPIKE - 1, SPIKE, SPIKE + 1])
def test_a_run_that_is_killed_around_a_spike_and_resumed_is_the_uninterrupted_one(tmp_path, killed_at, precision):
    module, strategy = start(GUARD, precision)
    expected = take(module, strategy, range(STEPS))
    before, first = start(GUARD, precision)
    decisions = take(before, first, range(killed_at))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), ALONE)
    checkpoints.save(killed_at, first, {"tokens": 0}, required=True)
    after, second = start(GUARD, precision)
    restore(newest_step(tmp_path, ALONE), shapes_of(after), second)
    decisions += take(after, second, range(killed_at, STEPS))
    assert decisions == expected and sum(expected) == 1
    assert second.state() == strategy.state()
    assert_same(state_of(after, second), state_of(module, strategy))
    checkpoints.close()
