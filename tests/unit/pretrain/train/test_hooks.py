"""What a run writes and does at log, evaluation and checkpoint steps, with everything around it played by stand-ins."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from pretrain.distributed.world import World
from pretrain.errors import Diverged, NumericalError
from pretrain.strategy.base import Memory, Update
from pretrain.tracking.base import scalars
from pretrain.tracking.jsonl import SKIPS_FILE
from pretrain.train import hooks as module
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.hooks import RunHooks
from pretrain.train.loop import TrainState
from pretrain.train.metrics import Measured, StepMeter, Throughput
from pretrain.train.own_hooks import OwnHooks
from pretrain.train.skips import Skips


class Run:
    """Hooks of a run whose clock moves by 5 s in an evaluation and by 11 s in a save."""

    def __init__(self, world=None, predicted=None, max_skipped=2, skips=None):
        self.now, self.saved, self.written = 0.0, [], []
        self.meter = StepMeter(torch.device("cpu"))
        clock = lambda: self.now
        throughput = Throughput(step=4, tokens=100, flops_per_token=3.0, peak_flops=60.0, clock=clock)
        groups = [{"lr": 0.006, "base_lr": 0.02}, {"lr": 0.0015, "base_lr": 0.005}]
        optimizer = SimpleNamespace(param_groups=groups)
        tracker = SimpleNamespace(log=self.written.append, mark=lambda: {"lines": len(self.written)})
        self.hooks = RunHooks(
            log_every=1,
            evaluate_every=1,
            save_every=1,
            skips=Skips(max_skipped, lambda step: 100 + step, skips),
            world=world or World.alone(),
            strategy=SimpleNamespace(optimizer=optimizer, scale_exhausted=False),
            meter=self.meter,
            throughput=throughput,
            evaluator=self.evaluate,
            checkpoints=SimpleNamespace(save=self.save, settle=self.settle, on_commit=None),
            tracker=None if world else tracker,
            stopping=EarlyStopping(metric="loss", lower_is_better=True),
            own=OwnHooks({}, World.alone()),
            fingerprints={"data.seq_len": 8},
            facts={"vocab_size": 9},
            predicted=predicted,
        )

    def evaluate(self):
        self.now += 5
        return {"loss": 1.5}

    def save(self, step, strategy, state, **options):
        self.now += 11
        self.saved.append((step, state, options))

    def settle(self, wait=False):
        self.now += 2
        self.saved.append(("settle", wait))

    def steps(self, *norms, nll=6.0, targets=4, refused=()):
        for norm in norms:
            self.meter.add(torch.tensor(nll))
            self.meter.end_step(update(norm, skipped=norm in refused), targets)


def update(norm, z=None, *, skipped=False):
    norm = torch.tensor(norm)
    skipped = ~norm.isfinite() | torch.tensor(skipped)
    return Update(norm, skipped, None if z is None else torch.tensor(z, dtype=torch.float64))


def test_a_training_record_is_of_the_steps_since_the_last_one():
    run = Run()
    run.steps(1.0, float("inf"), 3.0)
    run.now = 10.0
    run.hooks.log(TrainState(step=7, tokens=160))
    [record] = run.written
    found = {key: value for key, value in record.items() if not key.startswith("memory")}
    assert found == {
        "step": 7,
        "split": "train",
        "loss": 1.5,  # of the newest step, 6 nats and 4 targets
        "tokens": 160,
        "lr": 0.006,  # what the optimizer used in the step that was taken last: the largest, the smallest
        "lr_min": 0.0015,
        "lr_factor": pytest.approx(0.3),
        "grad_norm": 3.0,
        "tokens_per_s": 6.0,
        "step_s": pytest.approx(10 / 3),
        "mfu": pytest.approx(6 * 3 / 60),
        "skipped": 1,
        "loss_max": 1.5,
        "grad_norm_max": 3.0,
    }


def test_a_training_record_has_the_figures_of_sentences_where_sequences_have_labels():
    run = Run()
    for labels in ((0.5, 1, 2), (2.0, 1, 3)):
        run.meter.add(torch.tensor(3.0), torch.tensor(labels))
    run.meter.end_step(update(1.0, 2.5), 4)
    run.hooks.log(TrainState(step=5, tokens=160))
    [record] = run.written
    assert (record["loss"], record["sentence_loss"], record["sentence_accuracy"]) == (1.5, 0.5, 0.4)
    assert record["norm_z"] == 2.5, "of the guard, which there is"
    names = {"train/loss", "train/sentence_loss", "train/sentence_accuracy"}
    assert scalars(record).keys() >= names


def test_evaluations_and_saves_are_no_time_of_training():
    run = Run()
    assert run.hooks.evaluate(TrainState(step=5, tokens=110)) == {"loss": 1.5}
    run.hooks.save(TrainState(step=5, tokens=110), required=True)
    run.hooks.settle()
    run.now += 4
    run.steps(1.0, targets=1)
    run.hooks.log(TrainState(step=5, tokens=110))
    validation, training = run.written
    assert validation == {"step": 5, "split": "validation", "tokens": 110, "loss": 1.5}
    assert training["step_s"] == 2 + 4, "what is left of a save is done while the device trains"
    progress = {"tokens": 110, "resume": {"data.seq_len": 8}, "facts": {"vocab_size": 9}, "metrics": {"lines": 1}}
    progress |= {"best_evaluation": (5, 1.5), "stalled": 0, "unlogged": (None, None, None, 0), "skipped": []}
    assert run.saved == [(5, progress, {"value": 1.5, "required": True}), ("settle", False)]


def test_as_many_skipped_updates_in_a_row_as_allowed_are_survived_and_one_more_is_not(tmp_path):
    run = Run(max_skipped=2, skips=tmp_path / SKIPS_FILE)
    run.steps(1.0, float("nan"), float("inf"))
    run.hooks.log(TrainState(step=3))
    run.steps(9.0, 1.0, refused=[9.0])
    said = (
        r"step 5: 3 updates in a row skipped \(train.max_skipped=2\): 2 non-finite, 1 outlier: "
        "step 2 on data step 101; step 3 on data step 102; step 4 on data step 103; weights are as before them"
    )
    with pytest.raises(Diverged, match=said) as found:
        run.hooks.log(TrainState(step=5))
    assert (found.value.first, found.value.step) == (1, 5)
    lines = [json.loads(line) for line in (tmp_path / SKIPS_FILE).read_text().splitlines()]
    assert lines == [
        {"step": 2, "data_step": 101, "grad_norm": "NaN", "cause": "non-finite"},
        {"step": 3, "data_step": 102, "grad_norm": "Infinity", "cause": "non-finite"},
        {"step": 4, "data_step": 103, "grad_norm": 9.0, "cause": "outlier"},
    ]
    assert run.saved == [("settle", True)], "a save under way is not lost"
    assert len(run.written) == 2, "the record of the steps that failed is written first"


def measured(norm, *, skipped):
    return Measured(1.5, norm, skipped, math.nan)


def test_a_resumed_run_forgets_the_skips_that_it_takes_again(tmp_path):
    file = tmp_path / SKIPS_FILE
    first = Skips(5, file=file)
    assert not file.exists(), "a run that skips nothing has none"
    first.add(4, [measured(norm, skipped=norm < 3) for norm in (4.0, 1.0, 3.0, 2.0)])
    assert first.failure(4) is None
    Skips(5, file=file, start_step=3).add(4, [measured(7.0, skipped=True)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["grad_norm"]) for line in lines] == [(2, 1.0), (4, 7.0)]


@pytest.mark.parametrize("save", [1, 2, 3])
def test_a_run_that_resumes_between_two_log_lines_logs_what_it_would_have_logged(tmp_path, save):
    """What stands out of the steps before the save counts, and so do skips in a row."""
    norms = [5.0, math.nan, 8.0, math.inf, 2.0, 3.0]  # one is refused, so that three in a row are skipped

    def take(run, norms):
        for norm in norms:
            run.steps(norm, refused=[8.0], nll=4 * norm if math.isfinite(norm) else 4.0)

    whole, first, second = (Run(max_skipped=2, skips=tmp_path / name) for name in ("whole", "resumed", "resumed"))
    take(whole, norms)
    take(first, norms[:save])
    first.hooks.save(TrainState(step=save), required=True)
    state = json.loads(json.dumps(first.saved[-1][1], allow_nan=False))
    second.hooks.restore(state)
    take(second, norms[save:])
    for run in (whole, second):
        run.now = 60.0
        with pytest.raises(Diverged, match="3 updates in a row skipped"):
            run.hooks.log(TrainState(step=6))
    timed = ("tokens_per_s", "step_s", "mfu", "memory")
    [[one], [other]] = (
        [{key: value for key, value in line.items() if not key.startswith(timed)} for line in run.written]
        for run in (whole, second)
    )
    assert one == other
    assert (one["skipped"], one["loss_max"], one["grad_norm_max"]) == (3, 8.0, 8.0)
    assert (tmp_path / "resumed").read_text() == (tmp_path / "whole").read_text()


def test_overflow_at_the_smallest_scale_ends_the_run_with_the_steps_that_were_skipped():
    run = Run(max_skipped=9)
    run.steps(math.inf, math.inf)
    run.hooks.strategy.scale_exhausted = True
    with pytest.raises(NumericalError, match=r"step 2: .*precision.min_scale; 2 non-finite: step 1 on data step 100;"):
        run.hooks.log(TrainState(step=2))
    assert run.saved == [("settle", True)]


def test_memory_is_compared_once_with_that_of_the_fullest_rank(monkeypatch):
    compared = []
    monkeypatch.setattr(module, "compare_memory", lambda *values: compared.append(values))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    predicted = Memory(1, 2, 3)

    class Ranks(World):
        def gather(self, message):
            return [5, message, 9, 7]

    run = Run(world=Ranks(0, 1, torch.device("cuda", 0)), predicted=predicted)
    for step in (1, 2):
        run.steps(1.0)
        run.hooks.log(TrainState(step=step))
    assert compared == [(9, predicted)]
