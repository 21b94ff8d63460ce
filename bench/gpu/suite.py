"""The GPU tests of the project, run by pytest in a process of their own; each outcome counts as soon as it is known.

Holds no test; they are in `tests/gpu`.
"""

from __future__ import annotations

import re
import subprocess
import sys

from bench.gpu.parts import missing, report
from bench.rounds import ROOT

OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
TEST = re.compile(r"(tests/gpu/\S+?\.py::\S.*?)(?: (?:PASSED|FAILED|ERROR|SKIPPED)\b.*)?$")
WORKERS = 6  # processes that share the GPU: most tests wait for compilers and imports


def outcome_in(line: str) -> tuple[str, str] | None:
    """Return (outcome, test) of a line of pytest's, with workers or without; None for any other line."""
    found, test = OUTCOME.search(line), TEST.search(line)
    if not found or not test or line.startswith(("FAILED", "ERROR")):  # those begin lines of the summary at the end
        return None
    return found[1].lower(), test[1].strip()


def measure(*, dry: bool) -> None:
    """Run the tests and report each; a limit of time leaves those that were run. Exits with pytest's own code."""
    workers = [] if missing(["xdist"]) or dry else ["-n", str(WORKERS)]
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-vv", "-p", "no:cacheprovider", "--tb=short", *workers]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if found := outcome_in(line):
            report(kind="test", outcome=found[0], test=found[1])
    sys.exit(process.wait())
