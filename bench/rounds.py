"""Contestants as processes that run one at a time, so that a busy machine is busy for all of them.

Holds processes and medians; what a contestant is belongs to `contestants`, what counts to the scripts.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.001  # seconds between two looks at a file that grows


class Runner:
    """A process that appends a JSON line to a file at the end of each of its steps; it runs only inside `step`."""

    def __init__(self, command: list[str], folder: Path, lines: Path, threads: int) -> None:
        self._command = command
        self._folder = folder  # for what the process prints: out.txt and errors.txt
        self._lines = lines
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0  # bytes of the file: to look at it costs the same however long it has become

    def step(self) -> float:
        """Let the process run until it has written the next line; return how many seconds that took.

        The first step starts it. It is stopped a moment into the step that follows; the next measurement lacks what
        this one has too much.
        """
        began = time.perf_counter()
        if self._process is None:
            self._process = self._start()
        self._process.send_signal(signal.SIGCONT)
        while not self._wrote_step():
            if self._process.poll() is not None:
                errors = (self._folder / "errors.txt").read_text()
                raise SystemExit(f"{' '.join(self._command)}\n{errors}\nexit code {self._process.returncode}")
            time.sleep(POLL_S)
        self._process.send_signal(signal.SIGSTOP)
        return time.perf_counter() - began

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir()
        with (self._folder / "out.txt").open("w") as out, (self._folder / "errors.txt").open("w") as errors:
            return subprocess.Popen(self._command, cwd=ROOT, env=environment(self._threads), stdout=out, stderr=errors)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _wrote_step(self) -> bool:
        """Return whether whole lines that came since the last look tell of a step."""
        if not self._lines.exists():
            return False
        with self._lines.open("rb") as lines:
            lines.seek(self._read)
            whole = lines.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        return any(line.startswith(b'{"step"') for line in whole.splitlines())


def interleaved(runners: dict[str, Runner], warm_up: int, rounds: int) -> dict[str, list[float]]:
    """Take steps A B C, A B C, ...; return the seconds of each contestant's steps, one a round, after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with ExitStack() as stack:
        for runner in runners.values():
            stack.enter_context(runner)
        for number in range(warm_up + rounds):
            for name, runner in runners.items():
                taken = runner.step()
                if number >= warm_up:
                    seconds[name].append(taken)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median over the rounds of each contestant."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def paired_ratio(one: list[float], other: list[float]) -> float:
    """Return the median over the rounds of how many times longer `one` took than `other` in the same round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def environment(threads: int) -> dict[str, str]:
    """Return the environment of every contestant: the same threads, no network, nobody's settings.

    PYTHONDONTWRITEBYTECODE among them: with it a checkout is compiled at every start, installed packages are not.
    """
    others = ("OMP_", "MKL_", "ACCELERATE_", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    return kept | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def machine(*packages: str) -> str:
    """Return one line on where figures come from: processor, cores, load, Python and library versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {versions}"
