"""The demos from end to end, by the commands that `make demo` runs, in fewer steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetune.synthetic.packages import LABELS
from ranks import column

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def commands(target: str) -> list[str]:
    """Return the Python commands of one of the Makefile's demos, as make would run them."""
    printed = subprocess.run(["make", "-n", "-o", "setup", target], cwd=MAKEFILE.parent, capture_output=True, text=True)
    lines = [line for line in printed.stdout.splitlines() if " -m " in line]
    return [line.replace(".venv/bin/python", sys.executable) for line in lines]


SHORTER = {
    "experiment=demo": "train.steps=60 eval.every=30 checkpoint.every=30",
    "experiment=demo_bert": "train.steps=20 schedule.warmup_steps=5 eval.every=20 checkpoint.every=20",
    "experiment=synthetic/packages": "train.epochs=0.2",
    "experiment=synthetic/signatures": "train.epochs=0.5",
}


def output(command: str, cwd) -> str:
    """Run a command in fewer steps than the demo has, and return what it prints."""
    [shorter] = [more for experiment, more in SHORTER.items() if command.endswith(experiment)] or [""]
    line = ["sh", "-c", f"{command} {shorter}"]
    return subprocess.run(line, cwd=cwd, env=os.environ, capture_output=True, text=True, check=True).stdout


def test_the_demo_is_both_demos():
    both = [commands(target) for target in ("demo-pretrain", "demo-finetune")]
    assert [len(lines) for lines in both] == [3, 10]
    assert commands("demo") == both[0] + both[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_learns_samples_and_reports(tmp_path):
    printed = [output(command, tmp_path) for command in commands("demo-pretrain")]
    run = tmp_path / "runs" / "demo"
    bits = column(run, "bits_per_byte", "validation")
    first, last = bits[min(bits)], bits[max(bits)]
    assert last < 0.6 * first, "held-out bits per byte fall by at least 40 %"
    assert printed[1].startswith("class Queue")
    page = (run / "report" / "report.md").read_text()
    assert "gzip -9" in page
    assert (run / "report" / "curves.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_fine_tunes_and_answers(tmp_path):
    printed = [output(command, tmp_path) for command in commands("demo-finetune")]
    runs, data = tmp_path / "runs", tmp_path / "data" / "synthetic"

    accuracy = json.loads(printed[3])["accuracy"]  # so short a run has learnt no more than chance
    assert [accuracy] == list(column(runs / "synthetic_packages", "accuracy", "validation").values())
    probabilities = json.loads(printed[4])["probabilities"]
    assert sorted(probabilities) == LABELS and sum(probabilities.values()) == pytest.approx(1)

    f1 = json.loads(printed[7])["f1"]
    assert [f1] == list(column(runs / "synthetic_signatures", "f1", "validation").values())
    assert f1 > 0.05
    answer = json.loads(printed[8])
    asked = json.loads((data / "signatures" / "validation.jsonl").read_text().partition("\n")[0])
    assert answer["answer"] == asked["context"][answer["start"] : answer["end"]]

    pages = [(runs / f"synthetic_{name}" / "report" / "report.md").read_text() for name in ("packages", "signatures")]
    assert all(page.startswith("# ") for page in pages)
