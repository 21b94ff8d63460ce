"""A part of the day of a GPU: a process of its own, with a limit of time, whose results survive whatever ends it.

Holds how parts share the time and how one is run; what they measure is in the files beside. Free of torch: a machine
that lacks a library still gets every part that does without.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from bench.rounds import ROOT

RESULT = "RESULT "  # begins a line of a part's output that is a result, as JSON
TAIL = 30  # lines of a part's output that are kept if it did not end well
GRACE_S = 5.0  # that a part has to end after it was asked to


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is to be run, in the order of its worth."""

    name: str
    least_s: float  # without so much time left it is not started; parts before it leave it that much
    most_s: float  # it is stopped after
    needs: tuple[str, ...] = ()  # modules without which it cannot run
    command: tuple[str, ...] = ()  # of another program than this one


class State(StrEnum):
    """How a part ended."""

    done = "done"
    failed = "failed"
    stopped = "stopped at its limit"
    skipped = "skipped"  # a module is missing
    dropped = "dropped"  # no time was left


@dataclass
class Outcome:
    """What became of a part."""

    name: str
    state: State
    seconds: float = 0.0
    reason: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)  # what it measured before it ended
    tail: list[str] = field(default_factory=list)  # the last lines of its output, unless it is done


def report(**values: Any) -> None:
    """Print a result of this part, for the process that started it. It counts from now on, whatever comes later."""
    print(RESULT + json.dumps(values), flush=True)


def missing(modules: Sequence[str]) -> list[str]:
    """Return those of some modules that cannot be imported here."""

    def is_there(name: str) -> bool:
        try:
            return find_spec(name) is not None
        except ModuleNotFoundError:  # of a package that is missing itself
            return False

    return [name for name in modules if not is_there(name)]


def run_parts(
    parts: Sequence[Part], budget_s: float, options: Sequence[str], after: Any = lambda outcomes: None
) -> None:
    """Run parts within a budget of time; call `after` with all outcomes so far whenever one is known.

    Each part gets what is left, less the least that those behind it need, but at least its own least, for it is worth
    more than they are; and at most its own limit.
    """
    began, outcomes = time.monotonic(), []
    for number, part in enumerate(parts):
        left = budget_s - (time.monotonic() - began)
        reserved = sum(other.least_s for other in parts[number + 1 :] if not missing(other.needs))
        limit = min(part.most_s, max(part.least_s, left - reserved))
        if absent := missing(part.needs):
            outcome = Outcome(part.name, State.skipped, reason=f"{', '.join(absent)} missing; see bench/gpu.md")
        elif left < part.least_s:
            reason = f"{max(left, 0):.0f} s of {budget_s:.0f} are left, and it needs {part.least_s:.0f}"
            outcome = Outcome(part.name, State.dropped, reason=reason)
        else:
            outcome = run_part(part, limit, options)
        outcomes.append(outcome)
        after(outcomes)


def run_part(part: Part, limit_s: float, options: Sequence[str] = ()) -> Outcome:
    """Run a part, stop it with all that it started at the limit, and return what it had measured by then."""
    command = part.command or (sys.executable, "-m", "bench.gpu", "--part", part.name, *options)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    # A session of its own, so that what it started, such as compile workers, ends with it.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        process.wait(limit_s)
        state = State.failed if process.returncode else State.done
    except subprocess.TimeoutExpired:
        state = State.stopped
    finally:
        _end(process)
    reader.join(GRACE_S)
    results, others = [], []
    for line in list(lines):
        if line.startswith(RESULT):
            results.append(json.loads(line.removeprefix(RESULT)))
        elif line.strip():
            others.append(line.rstrip())
    reason = {State.failed: f"exit code {process.returncode}", State.stopped: f"after {limit_s:.0f} s"}.get(state, "")
    tail = [] if state is State.done else others[-TAIL:]
    return Outcome(part.name, state, time.monotonic() - began, reason, results, tail)


def _end(process: subprocess.Popen[str]) -> None:
    """End a part and all that it started, also what outlived it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
