"""Several seeds: a run for each in a process of its own, a stop that reaches it, and what is said of them all."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from finetuned_runs import texts, write
from ranks import FAST, command, run
from run_directories import make_run, word_pieces

from finetune.config import FINETUNE
from finetune.seeds import Children, SeedError, arguments_of_one, best, fine_tune_each, together
from pretrain.compose import compose, compose_command_line
from pretrain.distributed.world import STOP_SIGNALS
from pretrain.errors import ConfigError, Preempted
from pretrain.tracking.jsonl import JsonlSink

TASK = ["task=classification", "init_from=bert", "task.train=train.jsonl", "task.validation=validation.jsonl"]
EXPERIMENT = """\
# @package _global_
defaults:
  - override /task: classification

run: {name: filed}
seed: 9
seeds: [5, 3]
init_from: bert
task: {train: train.jsonl, validation: validation.jsonl, max_tokens: 32}
train: {epochs: 40, batch_size: 8}
optim: {lr: 1.0e-3}
log: {every: 1}
eval: {every: 30}
tracker: {progress: false}
"""
ARGUMENTS = ["--config-dir", "own", "experiment=filed"]
# Short sleeps: Python sees a signal that comes just before a long one only after it.
CHILD = "import os, signal, sys, time\n{}\nopen(sys.argv[1], 'w').close()\nfor _ in range(6000): time.sleep(0.01)"
ENDS_WITH_85 = CHILD.format("signal.signal(int(sys.argv[2]), lambda *_: sys.exit(85))")
TELLS_ITS_PID = CHILD.format("open(sys.argv[2], 'w').write(str(os.getpid()))")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a tiny BERT, and an experiment of two seeds in a file."""
    folder = tmp_path_factory.mktemp("seeds")
    records = [{"text": text, "label": label} for text, label in texts(31)]
    random.Random(3).shuffle(records)
    write(folder / "train.jsonl", records[:24])
    write(folder / "validation.jsonl", records[24:])
    make_run(folder / "bert", "model.init_std=0.3", model="encoder", tokenizer=word_pieces())
    (folder / "own" / "experiment").mkdir(parents=True)
    (folder / "own" / "experiment" / "filed.yaml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def stopped(folder):
    """Return exit code and messages of a command that got SIGTERM while its first run trained, and the run's pid."""
    line = command(*ARGUMENTS, program="finetune")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=folder, env=os.environ | FAST, **pipes)
    directory = folder / "runs" / "filed-seed-5"
    while not (directory / "metrics.jsonl").exists() or not (directory / "metrics.jsonl").read_text().count("\n") > 2:
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.005)
    pid = int(re.match(r"pid (\d+) ", (directory / "lock").read_text())[1])
    assert is_alive(pid) and pid != process.pid
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said, pid


@pytest.fixture(scope="module")
def finished(folder, stopped):
    """Return what the same command prints when it has gone on to its end."""
    return run(*ARGUMENTS, cwd=folder, program="finetune").stdout


@pytest.mark.slow
def test_a_stop_is_passed_on_and_leaves_no_process(folder, stopped):
    code, said, pid = stopped
    assert code == 85 and "the run with seed=5 ended with exit code 85; the same command goes on" in said
    assert "Traceback" not in said
    assert not is_alive(pid)


@pytest.mark.slow
def test_the_same_command_goes_on_with_seeds_that_a_file_names(folder, finished):
    runs = folder / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["filed-seed-3", "filed-seed-5"]
    assert "resuming from" in (runs / "filed-seed-5" / "log.txt").read_text()
    for seed in (3, 5):
        cfg = compose([], config_dir=runs / f"filed-seed-{seed}", config_name="config", root=FINETUNE)
        assert (cfg.seed, cfg.seeds) == (seed, [])
        record = json.loads((runs / f"filed-seed-{seed}" / "run.json").read_text())
        assert (record["name"], record["exit"]) == (f"filed-seed-{seed}", 0)


@pytest.mark.slow
def test_what_is_printed_is_mean_and_deviation_of_the_best_steps(folder, finished):
    measured = []
    for seed in (5, 3):
        directory = folder / "runs" / f"filed-seed-{seed}"
        step = json.loads((directory / "run.json").read_text())["best_step"]
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        measured.append(next(row for row in rows if (row["split"], row["step"]) == ("validation", step)))
    assert measured[0]["loss"] != measured[1]["loss"]
    lines = re.findall(r"^(\S+): (\S+) ± (\S+) over 2 seeds$", finished, re.MULTILINE)
    assert {"loss", "accuracy"} <= {metric for metric, *_ in lines}
    assert {metric for metric, *_ in lines} == measured[0].keys() - {"step", "split", "tokens", "time"}
    for metric, mean, deviation in lines:
        values = np.array([row[metric] for row in measured], dtype=np.float64)
        assert float(mean) == pytest.approx(values.mean(), abs=5.1e-5)
        assert float(deviation) == pytest.approx(values.std(ddof=1), abs=5.1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        [*TASK, "seeds=[1,2]", "seed=4", "run.name=x"],
        [*TASK, "++seeds=[1,2]", "++seed=4", "++run.name=x"],
        [*TASK, "+seeds=[1,2]", "run.name=x", "~seed"],
        [*TASK, "run={name:x}", "seeds=[1]", "seeds=[1,2]"],
        ["--config-dir", "own", "experiment=filed", "seed=4"],
        ["experiment=filed", "~seed", "--config-dir", "own"],
        ["seeds=[1,2]", *TASK, "--config-dir=own"],
    ],
)
def test_a_run_has_its_seed_and_name_whatever_the_command_line_says(folder, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments_of_one(arguments, 7, "x-seed-7")])
    cfg = compose_command_line(FINETUNE)
    assert (cfg.seed, cfg.seeds, cfg.run.name) == (7, [], "x-seed-7")


def test_a_seed_named_twice_is_refused():
    with pytest.raises(ConfigError, match=r"seeds=\[2, 1, 2\]: each is one run"):
        compose([*TASK, "seeds=[2,1,2]"], root=FINETUNE)


def test_a_run_that_fails_ends_the_command_with_its_code(tmp_path, capfd):
    cfg = compose([*TASK, "seeds=[2,1]", f"run.root={tmp_path}"], root=FINETUNE)
    with pytest.raises(SeedError, match="the run with seed=2 ended with exit code 2") as refused:
        fine_tune_each(cfg, ["nonsense=1"])
    assert refused.value.exit_code == 2
    assert capfd.readouterr().err.count("nonsense: no such setting") == 1


def test_seeds_under_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="under torchrun each seed is a command of its own"):
        fine_tune_each(compose([*TASK, "seeds=[2,1]"], root=FINETUNE), TASK)


def test_metrics_of_some_seeds_and_numbers_that_are_none_are_told():
    measured = [
        {"loss": 0.5, "f1": math.nan, "f1/A": 0.25},
        {"loss": 0.75, "f1": 0.5, "f1/C": 0.125, "mse": math.inf},
        {"loss": 1.75, "f1": 0.5, "f1/A": 0.75, "mse": -math.inf},
    ]
    assert list(together(measured)) == [
        "loss: 1.0000 ± 0.6614 over 3 seeds",  # sqrt((0.25 + 0.0625 + 0.5625) / 2)
        "f1: nan ± nan over 3 seeds",
        "f1/A: 0.5000 ± 0.3536 over 2 of 3 seeds",
        "f1/C: 0.1250 ± nan over 1 of 3 seeds",
        "mse: nan ± nan over 2 of 3 seeds",
    ]


def test_the_best_step_is_read_as_it_is_written(tmp_path):
    (tmp_path / "run.json").write_text('{"best_step": 4}')
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    where = {"tokens": 70, "time": 1.5}
    sink.log({"step": 4, "split": "train", "loss": 3.0, **where})
    sink.log({"step": 2, "split": "validation", "loss": 1.0, "exact_match": 0.25, **where})
    threshold = {"no_answer_threshold": -sys.float_info.max}
    sink.log({"step": 4, "split": "validation", "loss": math.nan, "exact_match": 0.5, "f1": None, **threshold, **where})
    sink.close(0)
    found = best(tmp_path)
    assert list(found) == ["loss", "exact_match"]
    assert math.isnan(found["loss"]) and found["exact_match"] == 0.5


def while_it_runs(ready: Path, number: int) -> None:
    """Send this process a signal as soon as a child has made its file."""

    def wait_and_send() -> None:
        while not ready.exists():
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_and_send).start()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_after_a_stop_no_other_child_begins(tmp_path, number):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with Children() as children:
        while_it_runs(tmp_path / "ready", number)
        assert children.run([sys.executable, "-c", ENDS_WITH_85, str(tmp_path / "ready"), str(int(number))]) == 85
        with pytest.raises(Preempted, match="between two runs"):
            children.run([sys.executable, "-c", "import sys; open(sys.argv[1], 'w')", str(tmp_path / "second")])
    assert not (tmp_path / "second").exists()
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_stop_that_comes_before_a_child_listens_is_a_stop(tmp_path):
    with Children() as children, pytest.raises(Preempted, match="before a run began"):
        while_it_runs(tmp_path / "ready", signal.SIGUSR1)
        children.run([sys.executable, "-c", CHILD.format(""), str(tmp_path / "ready")])


def test_exit_codes_are_passed_on_and_signals_become_codes():
    with Children() as children:
        ends = ("os._exit(3)", "os.kill(os.getpid(), 9)", "os._exit(0)")
        codes = [children.run([sys.executable, "-c", f"import os; {end}"]) for end in ends]
    assert codes == [3, 128 + 9, 0]


@pytest.fixture
def interruptible():
    """Let SIGINT interrupt, which shells have ignored by what they start in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_no_child(tmp_path):
    with Children() as children, pytest.raises(KeyboardInterrupt):
        while_it_runs(tmp_path / "ready", signal.SIGINT)
        children.run([sys.executable, "-c", TELLS_ITS_PID, str(tmp_path / "ready"), str(tmp_path / "pid")])
    assert not is_alive(int((tmp_path / "pid").read_text()))
