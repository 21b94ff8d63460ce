"""`make demo` from end to end, by its own commands, in fewer steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import column

from examples.demo_summary import about_pairs
from examples.synthetic_tasks import PACKAGES
from pretrain.report.history import load

ROOT = Path(__file__).parents[2]
SHORTER = {
    "experiment=demo": "train.steps=60 schedule.warmup_steps=5 eval.at_start=true",
    "experiment=demo_bert": "train.steps=20 schedule.warmup_steps=5",
    "experiment=synthetic/packages": "train.epochs=0.2",
    "experiment=synthetic/names": "train.epochs=0.5",
    "experiment=synthetic/pairs": "train.epochs=0.5 eval.at_start=true task.generate_examples=50",
}


def commands(target: str) -> list[str]:
    """Return the Python commands of one of the Makefile's demos, as make would run them."""
    printed = subprocess.run(["make", "-n", "-o", "setup", target], cwd=ROOT, capture_output=True, text=True)
    return [line for line in printed.stdout.splitlines() if ".venv/bin/python" in line]


def output(command: str, cwd: Path) -> str:
    """Run a command in fewer steps than the demo has, and return what it prints."""
    command = command.replace(".venv/bin/python", sys.executable).replace(" examples/", f" {ROOT}/examples/")
    [shorter] = [more for experiment, more in SHORTER.items() if experiment in command.split()] or [""]
    line = ["sh", "-c", f"{command} {shorter}"]
    return subprocess.run(line, cwd=cwd, env=os.environ, capture_output=True, text=True, check=True).stdout


def test_the_long_demo_runs_the_same_commands():
    short, pairs, long = commands("demo"), commands("demo-pairs"), commands("demo-long")
    assert (len(short), len(pairs)) == (12, 4)
    assert [command.replace("_long", "").replace(" train.epochs=6", "").split() for command in long] == [
        command.split() for command in [*pairs, *short]
    ]


@pytest.mark.slow
def test_the_translator_of_the_long_demo_learns_and_answers(tmp_path, monkeypatch):
    _, _, answered, _ = [output(command, tmp_path) for command in commands("demo-pairs")]
    run = tmp_path / "runs" / "synthetic_pairs"
    losses = column(run, "loss", "validation")
    assert losses[max(losses)] < 0.5 * losses[0]
    pairs = (tmp_path / "data" / "synthetic" / "pairs" / "validation.jsonl").read_text().splitlines()
    assert json.loads(answered)["source"] == json.loads(pairs[0])["code"]
    assert "Examples" in (run / "report" / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    [(name, said), (_, copied)] = about_pairs(load(run))
    assert name == "pairs" and said.endswith(f"BLEU {column(run, 'bleu', 'validation')[max(losses)]:.1f}")
    assert copied.startswith("(copied as they are: 0.0%, BLEU ")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_learns_answers_and_reports(tmp_path):
    printed = {command: output(command, tmp_path) for command in commands("demo")}
    runs = tmp_path / "runs"

    def of(word: str) -> str:
        [found] = [text for command, text in printed.items() if word in command]
        return found

    bits = column(runs / "demo", "bits_per_byte", "validation")
    assert bits[max(bits)] < 0.85 * bits[0], "held-out bits per byte fall by at least 15 %"
    assert of("pretrain.sample").startswith("class Queue")
    probabilities = json.loads(of("finetune.predict runs/synthetic_packages"))["probabilities"]
    assert sorted(probabilities) == PACKAGES and sum(probabilities.values()) == pytest.approx(1)
    tagged = json.loads(of("finetune.predict runs/synthetic_names"))
    first = (tmp_path / "data" / "synthetic" / "names" / "validation.jsonl").read_text().partition("\n")[0]
    assert tagged["words"] == json.loads(first)["words"] and len(tagged["tags"]) == len(tagged["words"])

    assert "gzip -9" in (runs / "demo" / "report" / "report.md").read_text()
    assert (runs / "demo" / "report" / "curves.png").stat().st_size > 20_000
    summary = of("demo_summary")
    assert f"{bits[max(bits)]:.2f} bits per byte (gzip -9 " in summary
    for task in ("packages", "names"):
        assert (runs / f"synthetic_{task}" / "report" / "report.md").read_text().startswith("# ")
        [accuracy] = column(runs / f"synthetic_{task}", "accuracy", "validation").values()
        assert f"{task:<10} {accuracy:.1%} of held-out" in summary
