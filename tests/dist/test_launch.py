"""`python -m launch local`: real runs on gloo ranks, sweeps of them, and what stands in their directories."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finetuned_runs import texts, write
from ranks import FAST, column, run, run_fresh, tiny
from run_directories import make_run, word_pieces


def launch(*words: str, cwd, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end and check its exit code."""
    line = [sys.executable, "-m", "launch", *words]
    done = subprocess.run(line, cwd=cwd, env=os.environ | FAST, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


SHORT = ["train.steps=6", "train.micro_batch_size=2", "eval.every=3", "checkpoint.every=3"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_run_of_a_sweep_equals_the_same_run_alone(place):
    words = tiny("grid", *SHORT, "optim.lr=1e-3,3e-3", "seed=1,2")
    swept = launch("local", "nproc=2", "--", "pretrain", *words, cwd=place)
    names = [f"grid-lr-{lr}-seed-{seed}" for lr in ("0.001", "0.003") for seed in (1, 2)]
    assert sorted(path.name for path in (place / "runs").glob("grid*")) == names
    for name in names:
        _, _, lr, _, seed = name.split("-")
        run(*tiny(f"alone-{name}", *SHORT, f"optim.lr={lr}", f"seed={seed}"), ranks=2, cwd=place)
        first, second = place / "runs" / name, place / "runs" / f"alone-{name}"
        for split in ("train", "validation"):
            assert column(first, "loss", split) == column(second, "loss", split)
        assert column(first, "grad_norm") == column(second, "grad_norm")
        assert json.loads((first / "run.json").read_text())["exit"] == 0
    last = [column(place / "runs" / name, "loss", "validation")[6] for name in names]
    assert len(set(last)) == 4, "the runs differ"
    header, *rows, first_mean, second_mean = swept.stdout.splitlines()[-7:]
    assert header.split()[:5] == ["run", "seed", "optim.lr", "exit", "steps"]
    assert [row.split()[0] for row in rows] == names
    assert [row.split()[3:5] for row in rows] == [["0", "6"]] * 4
    held_out = re.split(r"\s{2,}", header).index("held-out loss")
    assert [re.split(r"\s{2,}", row)[held_out] for row in rows] == [f"{loss:.4f}" for loss in last]
    for row, (one, other) in zip((first_mean, second_mean), (last[:2], last[2:]), strict=True):
        assert row.startswith("mean of 2 seeds")
        mean, deviation = map(float, re.split(r"\s{2,}", row)[held_out].split(" ± "))
        assert mean == pytest.approx((one + other) / 2, abs=1e-4)
        assert deviation == pytest.approx(abs(one - other) / math.sqrt(2), abs=1e-4)


FINETUNE = """\
# @package _global_
defaults:
  - override /task: classification

run: {name: filed}
init_from: bert
task: {train: data.jsonl, validation: data.jsonl, max_tokens: 32}
train: {epochs: 40, batch_size: 8}
optim: {lr: 1.0e-3}
log: {every: 1}
eval: {every: 30}
tracker: {progress: false}
"""


@pytest.mark.slow
def test_a_sweep_over_seeds_that_is_stopped_starts_no_other_run_and_resumes(tmp_path):
    write(tmp_path / "data.jsonl", [{"text": text, "label": label} for text, label in texts(24)])
    make_run(tmp_path / "bert", "model.init_std=0.3", model="encoder", tokenizer=word_pieces())
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "filed.yaml").write_text(FINETUNE)
    words = ["local", "nproc=1", "--", "finetune", "--config-dir", "own", "experiment=filed", "seed=5,3"]
    line, pipes = [sys.executable, "-m", "launch", *words], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(line, cwd=tmp_path, env=os.environ | FAST, text=True, **pipes)
    first, second = (tmp_path / "runs" / f"filed-seed-{seed}" for seed in (5, 3))
    while not (first / "metrics.jsonl").exists() or (first / "metrics.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 85 and "Traceback" not in err and not second.exists(), err
    assert [row.split()[1:2] for row in out.splitlines() if row.startswith("filed-seed-")][-2:] == [["85"], ["-"]]

    done = launch(*words, cwd=tmp_path)
    assert "resuming from" in (first / "log.txt").read_text()
    measured = []
    for run_directory in (first, second):
        record = json.loads((run_directory / "run.json").read_text())
        assert record["exit"] == 0
        measured.append(column(run_directory, "loss", "validation")[record["best_step"]])
    header, *_, last = [re.split(r"\s{2,}", row) for row in done.stdout.splitlines()[-4:]]
    assert last[:2] == ["mean of 2 seeds", "5, 3"] and measured[0] != measured[1]
    mean, deviation = map(float, last[header.index("held-out loss")].split(" ± "))
    assert mean == pytest.approx(sum(measured) / 2, abs=1e-4)
    assert deviation == pytest.approx(abs(measured[0] - measured[1]) / math.sqrt(2), abs=1e-4)


def test_two_ranks_make_one_run_directory_with_a_log_for_each(place):
    done = launch("local", "nproc=2", "--", "pretrain", *tiny("two", *SHORT), cwd=place)
    assert [path.name for path in (place / "runs").iterdir() if path.name.startswith("two")] == ["two"]
    two = place / "runs" / "two"
    assert [path.name for path in two.rglob("config.yaml")] == ["config.yaml"]
    assert sorted(path.name for path in (two / "ranks").iterdir()) == ["rank-0.log", "rank-1.log"]
    assert sorted(column(two, "loss")) == [1, 2, 3, 4, 5, 6]
    assert "step 6/6" in done.stdout and "on each of 2 ranks" in done.stderr
    assert "step 6/6" not in (two / "ranks" / "rank-1.log").read_text()


@pytest.mark.slow
def test_accelerate_starts_the_same_ranks(place):
    run_fresh(*tiny("torchrun", *SHORT), ranks=2, cwd=place)
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    line = [str(Path(sys.executable).with_name("accelerate")), "launch", *options, "-m", "pretrain"]
    subprocess.run([*line, *tiny("accelerate", *SHORT)], cwd=place, env=os.environ | FAST, check=True, timeout=280)
    runs = [place / "runs" / name for name in ("torchrun", "accelerate")]
    assert [json.loads((path / "run.json").read_text())["ranks"] for path in runs] == [2, 2]
    for key in ("loss", "grad_norm"):
        assert column(runs[0], key) == column(runs[1], key)


def test_what_ranks_could_not_run_is_refused_before_they_start(place):
    done = launch("local", "nproc=3", "--", "pretrain", *tiny("three"), cwd=place, code=2)
    assert done.stderr.startswith("train.batch_size=8: must be a multiple of")
    assert not (place / "runs" / "three").exists()


def test_a_sweep_goes_on_after_a_failure_and_says_so(place):
    words = [*tiny("some", *SHORT), "data.sources.text.paths=[binary.txt],[text.txt]", "data.prepare.on_invalid=fail"]
    (place / "binary.txt").write_bytes(b"a\xff\n\n" * 200)
    done = launch("local", "nproc=1", "--", "pretrain", *words, cwd=place, code=3)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("some-paths")]
    assert [row[0] for row in rows[-2:]] == ["some-paths-binary.txt", "some-paths-text.txt"]
    assert [row[1:3] for row in rows[-2:]] == [["3", "0"], ["0", "6"]], "exit codes and steps"
    assert "binary.txt: probably not in UTF-8" in done.stderr
