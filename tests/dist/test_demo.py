"""The demos from end to end, by the commands that `make demo` runs, in fewer steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import column

from finetune.synthetic.packages import LABELS

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def commands(target: str) -> list[str]:
    """Return the Python commands of one of the Makefile's demos, as make would run them."""
    printed = subprocess.run(["make", "-n", "-o", "setup", target], cwd=MAKEFILE.parent, capture_output=True, text=True)
    lines = [line for line in printed.stdout.splitlines() if " -m " in line]
    return [line.replace(".venv/bin/python", sys.executable) for line in lines]


SHORTER = {
    "experiment=demo": "train.steps=120 eval.every=60 checkpoint.every=60",
    "experiment=demo_bert": "train.steps=60 schedule.warmup_steps=20 eval.every=60 checkpoint.every=60",
    "experiment=synthetic/packages": "train.epochs=2",
    "experiment=synthetic/signatures": "train.epochs=0.5",
}


def output(command: str, cwd) -> str:
    """Run a command in fewer steps than the demo has, and return what it prints."""
    [shorter] = [more for experiment, more in SHORTER.items() if command.endswith(experiment)] or [""]
    line = ["sh", "-c", f"{command} {shorter}"]
    return subprocess.run(line, cwd=cwd, env=os.environ, capture_output=True, text=True, check=True).stdout


def test_the_demo_is_both_demos():
    both = [commands(target) for target in ("demo-pretrain", "demo-finetune")]
    assert [len(lines) for lines in both] == [3, 8]
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
    assert column(tmp_path / "runs" / "demo_bert", "loss", "validation").keys() == {60}
    for name, metric, (measured, predicted) in (
        ("packages", "accuracy", printed[3:5]),
        ("signatures", "f1", printed[6:8]),
    ):
        run = tmp_path / "runs" / f"synthetic_{name}"
        assert json.loads(measured)[metric] == max(column(run, metric, "validation").values())
        [answer] = map(json.loads, predicted.splitlines())
        asked = json.loads((tmp_path / "data" / "synthetic" / name / "validation.jsonl").read_text().splitlines()[0])
        if name == "packages":
            assert answer["label"] in LABELS
            assert json.loads(measured)[metric] > 2 / len(LABELS), "twice what chance would have"
        else:
            assert answer["answer"] == asked["context"][answer["start"] : answer["end"]]
            assert json.loads(measured)[metric] > 0.05
