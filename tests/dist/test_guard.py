"""One decision on every rank and under every strategy: which steps are skipped, and what is learnt from the others."""

import math

import pytest
from equivalence import SEQUENCES, SHAPES, Course, save, start, strategies, train
from ranks import on_ranks

from pretrain.checkpoint.load import restore
from pretrain.distributed.world import World
from pretrain.guard.sigma import SigmaConfig
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.precision import BF16

STEPS = 5  # under each strategy, of which the third has a spike and the fourth no numbers on the last rank
SKIPPED = [False, False, True, True, False]


def begin(world, cfg, precision=None):
    _, wrapped, strategy = start(world, cfg, precision)
    strategy.guard = SigmaConfig(warmup=2, decay=0.9).build()
    return wrapped, strategy


def take(world, wrapped, strategy, first) -> Course:
    course = Course([], [])
    for step in range(first, first + STEPS):
        broken = math.nan if world.rank == world.size - 1 else 1.0
        factor = {2: 1e3, 3: broken}.get(step % STEPS, 1.0)
        taken = train(world, wrapped, strategy, range(step, step + 1), SEQUENCES // world.size, factor)
        course.norms += taken.norms
        course.skipped += taken.skipped
    return course


def check_decisions(world, folder, norms, states):
    """One run that moves from strategy to strategy; in bf16 one for each that has another optimizer there."""
    saved = None
    for number, (name, cfg) in enumerate(strategies(world.size).items()):
        wrapped, strategy = begin(world, cfg)
        if saved:
            restore(saved, SHAPES, strategy)
        first = number * STEPS
        course = take(world, wrapped, strategy, first)
        assert world.gather(course.skipped) == [SKIPPED] * world.size, name
        assert not math.isfinite(course.norms[3]), name
        del course.norms[3]
        assert course.norms == pytest.approx(norms[number], rel=1e-5), name
        assert strategy.state() == pytest.approx(states[number], rel=1e-6, abs=1e-6), name
        saved = save(world, strategy, folder, first + STEPS)
        if "offload" in name or name == "zero1":  # other optimizers of DeepSpeed's
            wrapped, strategy = begin(world, cfg, BF16())
            assert take(world, wrapped, strategy, 0).skipped == SKIPPED, name


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_strategies_skip_the_same_steps_and_take_up_each_others_statistics(tmp_path, ranks):
    alone = World.alone()
    wrapped, strategy = begin(alone, DDPConfig())
    norms, states = [], []
    for number, _ in enumerate(strategies(ranks)):
        course = take(alone, wrapped, strategy, number * STEPS)
        assert course.skipped == SKIPPED
        norms.append([norm for norm in course.norms if math.isfinite(norm)])
        states.append(strategy.state())
    on_ranks(ranks, check_decisions, tmp_path, norms, states)
