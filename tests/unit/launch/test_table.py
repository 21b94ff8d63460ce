"""The table of runs: what differs, what was reached, and runs of which little is known."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from launch.table import mean_and_deviation, reached, table_of
from pretrain.report.history import load
from pretrain.tracking.jsonl import JsonlSink


def write(folder, name, lr, code, *, steps=0):
    run = folder / name
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"name": name, "exit": code}))
    if not steps:
        return run
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name}, "seed": 1, "optim": {"lr": lr}}))
    rows = [{"step": step, "split": "train", "loss": 5 - step / 8, "lr": 1.0} for step in range(1, steps + 1)]
    rows.append({"step": steps, "split": "validation", "loss": 4.25, "accuracy": 1 / 3, "tokens": 7, "memory_bytes": 1})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_the_table(tmp_path):
    runs = [
        write(tmp_path, "a", 1e-3, 0, steps=4),
        write(tmp_path, "bc", 3e-4, None, steps=11),
        write(tmp_path, "refused", 1, 2),
    ]
    lines = [
        "run      optim.lr  exit  steps  train loss  held-out loss  accuracy",
        "a        0.001     0     4      4.5000      4.2500         0.3333",
        "bc       0.0003    -     11     3.6250      4.2500         0.3333",
        "refused  -         2     0      -           -              -",
    ]
    assert table_of(runs).splitlines() == lines
    assert [line.split()[2] for line in table_of(runs, [0, 7, 85]).splitlines()[1:]] == ["0", "7", "85"]
    command = [sys.executable, "-m", "launch.table", *map(str, runs)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == lines


def test_a_sweep_over_choices_has_a_column_of_their_names(tmp_path):
    runs = [write(tmp_path, name, 1e-3, 0, steps=4) for name in ("a", "b")]
    for run, optim in zip(runs, ("adamw", "muon"), strict=True):
        with (run / "config.yaml").open("a") as config:
            config.write(f"defaults: [pretrain_schema, {{optim: {optim}}}, _self_]\n")
    header, *rows = table_of(runs).splitlines()
    assert header.split()[:3] == ["run", "optim", "exit"]
    assert [row.split()[:2] for row in rows] == [["a", "adamw"], ["b", "muon"]]


def seeded(folder, name, seed, lr, losses, *, code=0, best=None):
    """A run that was measured once a step, held-out accuracy being a tenth of the loss."""
    run = folder / name
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"name": name, "exit": code} | ({"best_step": best} if best else {})))
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name}, "seed": seed, "optim": {"lr": lr}}))
    sink = JsonlSink(run / "metrics.jsonl")
    for step, loss in enumerate(losses, 1):
        sink.log({"step": step, "split": "train", "loss": 2 * loss, "lr": lr, "tokens": 7})
        sink.log({"step": step, "split": "validation", "loss": loss, "accuracy": loss / 10, "tokens": 7, "time": 1.5})
    sink.close(0)
    return run


def test_runs_that_differ_in_the_seed_alone_have_their_mean_and_deviation(tmp_path):
    rng = np.random.default_rng(3)
    losses = {(lr, seed): rng.uniform(1, 5, 4) for lr in (0.1, 0.2) for seed in (0, 1, 2)}
    runs = [
        seeded(tmp_path, f"lr-{lr}-seed-{seed}", seed, lr, values.tolist(), best=1 + seed)
        for (lr, seed), values in losses.items()
    ]
    header, *rows = [re.split(r"\s{2,}", line) for line in table_of(runs).splitlines()]
    assert header == ["run", "optim.lr", "seed", "exit", "steps", "train loss", "held-out loss", "accuracy"]
    assert [row[0] for row in rows] == [run.name for run in runs] + ["mean of 3 seeds"] * 2
    for lr, row in zip((0.1, 0.2), rows[-2:], strict=True):
        assert row[1:5] == [str(lr), "0, 1, 2", "-", "-"]
        best = np.array([losses[lr, seed][seed] for seed in (0, 1, 2)])
        last = np.array([2 * losses[lr, seed][-1] for seed in (0, 1, 2)])
        for cell, values in zip(row[5:], (last, best, best / 10), strict=True):
            mean, deviation = map(float, cell.split(" ± "))
            assert mean == pytest.approx(values.mean(), abs=5.1e-5)
            assert deviation == pytest.approx(values.std(ddof=1), abs=5.1e-5)


def test_a_mean_over_seeds_says_how_many_finished(tmp_path):
    runs = [
        seeded(tmp_path, "a", 1, 0.1, [3.0, 1.0]),
        seeded(tmp_path, "b", 2, 0.1, [5.0, 2.0]),
        seeded(tmp_path, "failed", 3, 0.1, [9.0], code=5),
        seeded(tmp_path, "alone", 1, 0.2, [4.0]),
    ]
    *_, last = table_of(runs).splitlines()
    assert last.split("  ")[0] == "mean of 3 seeds" and last.count("mean") == 1
    assert "1.5000 ± 0.7071 (2 of 3)" in last
    assert "mean" not in table_of([runs[0], runs[3]])


def test_the_mean_of_values_that_are_few_or_not_finite():
    assert mean_and_deviation([0.5, 0.75, 1.75], of=3) == "1.0000 ± 0.6614"  # sqrt((0.25 + 0.0625 + 0.5625) / 2)
    assert mean_and_deviation([math.nan, 0.5, 0.5], of=3) == "nan ± nan"
    assert mean_and_deviation([0.25, 0.75], of=3) == "0.5000 ± 0.3536 (2 of 3)"
    assert mean_and_deviation([0.125], of=3) == "0.1250 ± nan (1 of 3)"
    assert mean_and_deviation([math.inf, -math.inf], of=2) == "nan ± nan"


def test_what_a_run_reached_is_read_as_it_is_written(tmp_path):
    (tmp_path / "run.json").write_text('{"best_step": 4}')
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    where = {"tokens": 70, "time": 1.5}
    sink.log({"step": 4, "split": "train", "loss": 3.0, **where})
    sink.log({"step": 2, "split": "validation", "loss": 1.0, "exact_match": 0.25, **where})
    threshold = {"no_answer_threshold": -sys.float_info.max}
    sink.log({"step": 4, "split": "validation", "loss": math.nan, "exact_match": 0.5, "f1": None, **threshold, **where})
    sink.log({"step": 6, "split": "validation", "loss": 0.5, "exact_match": 0.25, **where})
    sink.close(0)
    found = reached(load(tmp_path))
    assert list(found) == ["loss", "exact_match"]
    assert math.isnan(found["loss"]) and found["exact_match"] == 0.5
    (tmp_path / "run.json").write_text("{}")
    assert reached(load(tmp_path)) == {"loss": 0.5, "exact_match": 0.25}


def test_the_command_without_runs_says_what_it_wants():
    command = [sys.executable, "-m", "launch.table"]
    assert subprocess.run([*command, "--help"], capture_output=True, check=True).stdout.startswith(b"usage: ")
    assert subprocess.run(command, capture_output=True).returncode == 2
