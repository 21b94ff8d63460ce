"""The best step of a run, what keeps it on disk, when a run ends early, and what a resumed one takes up."""

import errno
import json
import math

import pytest
from toys import ALONE, toy_strategy

from pretrain.checkpoint.load import load_state
from pretrain.checkpoint.save import Checkpoints, SavingConfig
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.hooks import RunHooks
from pretrain.train.loop import TrainState
from pretrain.train.metrics import StepMeter, Throughput
from pretrain.train.own_hooks import OwnHooks
from pretrain.train.skips import Skips

NAN = math.nan


@pytest.fixture
def make(tmp_path):
    """Return the hooks of a run whose evaluations measure these values one after another."""

    def make(*values, metric="f1", patience=None, keep=1, asynchronous=True, save_every=1, save_best=False, seed=1):
        measured = iter(values)
        saving = SavingConfig(keep=keep, asynchronous=asynchronous)
        checkpoints = Checkpoints(tmp_path / "checkpoints", saving, ALONE)
        stopping = EarlyStopping(metric=metric, lower_is_better=metric == "loss", patience=patience)
        checkpoints.better = stopping.better
        return RunHooks(
            log_every=1,
            evaluate_every=1,
            save_every=save_every,
            save_best=save_best,
            skips=Skips(0),
            world=ALONE,
            strategy=toy_strategy()[1],
            meter=StepMeter(ALONE.device),
            throughput=Throughput(0, 0, 1.0, None),
            evaluator=lambda: {"loss": 0.5, "f1": 0.5, metric: next(measured)},
            stopping=stopping,
            own=OwnHooks({}, ALONE),
            checkpoints=checkpoints,
            tracker=None,
            fingerprints={"seed": seed},
            predicted=None,
        )

    return make


def evaluate(hooks, *steps):
    for step in steps:
        hooks.evaluate(TrainState(step=step))


def taken(hooks, steps):
    """Return how many of some steps are taken, as the loop takes them: each is evaluated, and saved if it is due."""
    for step in range(1, steps + 1):
        evaluate(hooks, step)
        over = hooks.end_early()
        if over or hooks.is_due(TrainState(step=step)):
            hooks.save(TrainState(step=step), required=over)
        if over:
            return step
    hooks.checkpoints.settle(wait=True)
    return steps


def saved(hooks):
    return sorted(int(path.name.removeprefix("step-")) for path in hooks.checkpoints.directory.glob("step-*"))


@pytest.mark.parametrize(
    ("values", "best", "value", "stalled"),
    [
        ([0.1, 0.3, 0.2], 2, 0.3, 1),
        ([0.3, 0.3, 0.3], 1, 0.3, 2),  # of equals the first
        ([-0.5, -0.7], 1, -0.5, 1),  # correlations may be negative
        ([0.0], 1, 0.0, 0),
        ([NAN, -0.9], 2, -0.9, 0),
        ([0.2, NAN, 0.1], 1, 0.2, 1),  # what has no value uses up no patience
        ([0.2, math.inf, -math.inf, 0.3], 4, 0.3, 0),
    ],
)
def test_the_best_step_is_the_first_with_the_largest_number(make, values, best, value, stalled):
    hooks = make(*values, asynchronous=False)
    for step in range(1, len(values) + 1):
        evaluate(hooks, step)
        hooks.save(TrainState(step=step), required=False)
    assert hooks.checkpoints.best == hooks.stopping.best == (best, value)
    assert hooks.stopping.stalled == stalled


@pytest.mark.parametrize(
    ("values", "best", "value", "stalled"),
    [([3.0, 2.0, 2.5], 2, 2.0, 1), ([2.0, 2.0], 1, 2.0, 1), ([NAN, 9.0, math.inf, -math.inf], 2, 9.0, 0)],
)
def test_of_losses_the_lowest_is_the_best(make, values, best, value, stalled):
    hooks = make(*values, metric="loss", asynchronous=False)
    assert taken(hooks, len(values)) == len(values)
    assert hooks.checkpoints.best == hooks.stopping.best == (best, value)
    assert hooks.stopping.stalled == stalled and saved(hooks) == sorted({best, len(values)})


@pytest.mark.parametrize(("save_best", "on_disk"), [(False, [4, 6]), (True, [5, 6])])
def test_a_step_that_is_the_best_is_saved_between_others_where_that_is_asked_for(make, save_best, on_disk):
    hooks = make(5.0, 4.0, 6.0, 3.0, 2.0, 7.0, metric="loss", save_every=2, save_best=save_best)
    taken(hooks, 6)
    assert saved(hooks) == on_disk
    assert hooks.checkpoints.best == ((5, 2.0) if save_best else (4, 3.0)) and hooks.stopping.best == (5, 2.0)


def test_what_was_measured_on_other_data_is_not_compared(make):
    before = make(2.0, 3.0, metric="loss")
    taken(before, 2)
    after = make(5.0, metric="loss", seed=2)
    after.restore(load_state(after.checkpoints.directory / "step-00000002"))
    assert (after.stopping.best, after.stopping.stalled, after.checkpoints.best) == (None, 0, None)


def test_no_step_is_the_best_where_nothing_has_a_value(make):
    hooks = make(NAN, math.inf, NAN, patience=1, asynchronous=False)
    assert taken(hooks, 3) == 3
    assert hooks.checkpoints.best is hooks.stopping.best is None and hooks.stopping.stalled == 0
    assert saved(hooks) == [3], "the last step, which counts as the best"


def test_the_best_step_of_an_older_version_stays(make):
    hooks = make(2.5, 1.5, metric="loss")
    hooks.restore({"best": [1, 2.0], "largest": 2.0, "stalled": 1, "resume": {}})
    evaluate(hooks, 2)
    assert (hooks.checkpoints.best, hooks.stopping.stalled) == ((1, 2.0), 2)
    evaluate(hooks, 3)
    assert (hooks.stopping.best, hooks.stopping.stalled) == ((3, 1.5), 0)


def test_what_was_measured_comes_back(make):
    assert make(0.4).evaluate(TrainState(step=1)) == {"loss": 0.5, "f1": 0.4}


@pytest.mark.parametrize(("patience", "steps"), [(1, 3), (2, 4), (3, 7), (None, 7)])
def test_a_run_ends_when_its_patience_is_used_up(make, patience, steps):
    hooks = make(0.1, 0.2, 0.2, 0.1, 0.3, 0.2, 0.1, patience=patience, save_every=100)
    assert taken(hooks, 7) == steps
    assert saved(hooks) == ([steps] if hooks.stopping.is_over else []), "the step that a run ends with is saved"


def test_steps_without_an_evaluation_use_up_no_patience(make):
    hooks = make(0.1, patience=1)
    evaluate(hooks, 1)
    assert not any(hooks.end_early() for _ in range(5))


@pytest.mark.parametrize("values", [[0.1, 0.3, 0.2], [NAN], []])
def test_a_resumed_run_takes_up_what_the_checkpoint_says(make, values):
    before = make(*values, patience=2)
    evaluate(before, *range(4 - len(values), 4))
    before.save(TrainState(step=3, tokens=11), required=True)
    after = make(0.2, 0.2, patience=2)
    state = load_state(after.checkpoints.directory / "step-00000003")
    after.restore(state)
    assert (state["tokens"], state["resume"]) == (11, {"seed": 1})
    assert after.stopping.progress() == before.stopping.progress()
    assert after.checkpoints.best == before.checkpoints.best
    assert (after.checkpoints.best is None) == (values in ([], [NAN]))
    json.dumps(after.progress(TrainState()))


def test_a_run_that_had_ended_early_takes_no_step_when_it_is_started_again(make):
    before = make(0.3, 0.2, patience=1)
    evaluate(before, 1, 2)
    before.save(TrainState(step=2), required=True)
    after = make(patience=1)
    after.restore(load_state(after.checkpoints.directory / "step-00000002"))
    assert after.end_early()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_best_step_stays_on_disk_whatever_is_kept(make, asynchronous):
    hooks = make(0.1, 0.5, 0.2, 0.3, 0.1, asynchronous=asynchronous)
    for step in range(1, 6):
        evaluate(hooks, step)
        hooks.save(TrainState(step=step), required=False)
    hooks.checkpoints.settle(wait=True)
    assert saved(hooks) == [2, 5]


def test_the_best_step_stays_until_a_better_one_is_on_disk(make):
    """The save before may be committed after the better step is measured, and before it is written."""
    hooks = make(0.3, 0.1, 0.5)
    for step in (1, 2):
        evaluate(hooks, step)
        hooks.save(TrainState(step=step), required=False)
    evaluate(hooks, 3)
    hooks.checkpoints.settle(wait=True)
    assert saved(hooks) == [1, 2]
    hooks.save(TrainState(step=3), required=True)
    assert saved(hooks) == [3]


def test_a_step_that_is_not_evaluated_is_never_the_best(make):
    """A run that is asked to stop is saved between two evaluations."""
    hooks = make(0.3, 0.1)
    for step, evaluated in ((1, True), (2, False), (3, True)):
        if evaluated:
            evaluate(hooks, step)
        hooks.save(TrainState(step=step), required=True)
    assert hooks.checkpoints.best == (1, 0.3)
    assert saved(hooks) == [1, 3]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_best_step_that_could_not_be_saved_leaves_the_one_before_it(make, asynchronous, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "no space left on device")

    hooks = make(0.3, 0.5, 0.4, 0.1, asynchronous=asynchronous)
    for step in range(1, 5):
        evaluate(hooks, step)
        with monkeypatch.context() as disk:
            if step == 2:
                disk.setattr("pretrain.checkpoint.save.commit", fail)
            hooks.save(TrainState(step=step), required=False)
            hooks.checkpoints.settle(wait=True)
    assert hooks.checkpoints.best == (3, 0.4)  # better than what is on disk, not than what was lost
    assert load_state(hooks.checkpoints.directory / "step-00000004")["best"] == [3, 0.4]
    assert saved(hooks) == [3, 4]
