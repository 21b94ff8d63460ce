"""Runs whose batches grow: what each step takes, resumed anywhere and on two ranks."""

import json
import math
import shutil

import pytest
from ranks import column, run, tiny
from test_pretrain import assert_close_runs, assert_equal_runs

STAGES = [(0, 4), (3, 12), (8, 20)]
SIZES = [4] * 3 + [12] * 5 + [20] * 4


def growing(name, *more, stages=STAGES):
    growth = ", ".join(f"{{step: {step}, size: {size}}}" for step, size in stages)
    sizes = [f"train.batch_growth=[{growth}]", "train.batch_size=20", "train.micro_batch_size=2"]
    saved = ["checkpoint.every=1", "checkpoint.keep=20", "model.dropout=0.1"]
    return [*tiny(name, "train.steps=12", "train.batch_lr=sqrt", *sizes, *saved), *more]


@pytest.fixture(scope="module")
def grown(place):
    run(*growing("grown"), cwd=place)
    return place / "runs" / "grown"


def test_each_step_takes_the_tokens_and_the_rate_of_its_batch(grown):
    tokens, rates = column(grown, "tokens"), column(grown, "lr")
    assert list(tokens.values()) == [32 * sum(SIZES[: step + 1]) for step in range(12)]
    warm = [min((step + 1) / 4, 1) for step in range(12)]
    curve = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * max(step - 3, 0) / 9)) for step in range(12)]
    expected = [3e-3 * math.sqrt(SIZES[step] / 20) * warm[step] * curve[step] for step in range(12)]
    assert list(rates.values()) == pytest.approx(expected, rel=1e-6)
    plan = (grown / "log.txt").read_text()
    assert f"12 steps, {32 * sum(SIZES):,} tokens" in plan and "before it 4 up to step 3, 12 up to step 8" in plan


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 6, 8])
def test_a_run_resumed_within_a_size_or_between_two_is_the_uninterrupted_one(place, grown, tmp_path, step):
    copy = tmp_path / "runs" / "grown"
    shutil.copytree(grown, copy, ignore=shutil.ignore_patterns("lock"))
    for later in [path for path in (copy / "checkpoints").iterdir() if int(path.name[-8:]) > step]:
        shutil.rmtree(later)
    resumed = run(*growing("grown", f"run.root={tmp_path / 'runs'}"), cwd=place).stderr
    assert f"step-{step:08d}" in resumed and "the learning rate" not in resumed
    assert_equal_runs(grown, copy)


@pytest.mark.slow
def test_ranks_do_not_change_a_run_that_grows(place):
    for ranks in (1, 2):
        more = "model.dropout=0", f"train.micro_batch_size={3 - ranks}"
        run(*growing(f"grown-on-{ranks}", *more), ranks=ranks, cwd=place)
    assert_close_runs(place / "runs" / "grown-on-1", place / "runs" / "grown-on-2")


@pytest.mark.slow
def test_another_growth_is_another_run(place, grown):
    record = (grown / "run.json").read_text()
    later = growing("grown", "train.steps=14", stages=[(0, 4), (3, 12), (9, 20)])
    refusal = run(*later, code=3, cwd=place).stderr
    assert "train.batch_growth was [{'step': 0, 'size': 4}" in refusal and "choose another run.name" in refusal
    refusal = run(*growing("grown", "train.steps=14", "train.batch_lr=none"), code=3, cwd=place).stderr
    assert "train.batch_lr was sqrt and is now none" in refusal
    assert json.loads((grown / "run.json").read_text()) == json.loads(record)
