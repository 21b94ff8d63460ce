"""The table of runs: what differs, what was reached, and runs of which little is known."""

import json
import subprocess
import sys

import yaml

from launch.table import table_of


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
        "run      optim.lr  exit  steps  train loss  held-out loss  held-out accuracy",
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


def test_the_command_without_runs_says_what_it_wants():
    command = [sys.executable, "-m", "launch.table"]
    assert subprocess.run([*command, "--help"], capture_output=True, check=True).stdout.startswith(b"usage: ")
    assert subprocess.run(command, capture_output=True).returncode == 2
