"""The demo from end to end, by the commands that `make demo` runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import column

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def commands() -> list[list[str]]:
    """Return the Python commands of the Makefile's demo, as make would run them."""
    printed = subprocess.run(["make", "-n", "-o", "setup", "demo"], cwd=MAKEFILE.parent, capture_output=True, text=True)
    lines = [line for line in printed.stdout.splitlines() if " -m pretrain" in line]
    assert len(lines) == 3
    return [["sh", "-c", line.replace(".venv/bin/python", sys.executable)] for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_learns_samples_and_reports(tmp_path):
    printed = [
        subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True).stdout
        for command in commands()
    ]
    run = tmp_path / "runs" / "demo"
    bits = column(run, "bits_per_byte", "validation")
    first, last = bits[min(bits)], bits[max(bits)]
    assert last < 0.6 * first, "held-out bits per byte fall by at least 40 %"
    assert printed[1].startswith("class Queue")
    page = (run / "report" / "report.md").read_text()
    assert "gzip -9" in page
    assert (run / "report" / "curves.png").stat().st_size > 20_000
