"""Several seeds in one command: a run of its own for each, and what they reach together.

Holds the processes and the sum; a run itself is `run`'s.
"""

from __future__ import annotations

import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Self

from finetune.config import FinetuneConfig
from pretrain.compose import with_overrides
from pretrain.distributed.world import STOP_SIGNALS, world_size
from pretrain.errors import ConfigError, HeadwaterError, Preempted
from pretrain.report.history import load

KILLED = 128  # plus the signal's number: the exit code of a process that a signal ended, as shells have it
NO_QUALITY = {"step", "tokens", "time", "no_answer_threshold"}  # where, and by which setting, a run was measured


class SeedError(HeadwaterError):
    """A run of one seed that failed; it ends the command with its own exit code."""

    def __init__(self, seed: int, exit_code: int) -> None:
        super().__init__(f"seeds: the run with seed={seed} ended with exit code {exit_code}; the same command goes on")
        self.exit_code = exit_code


class Children:
    """Runs commands as child processes, one at a time, and passes on to them what asks this process to stop.

    A context: handlers of SIGTERM and SIGUSR1 are its own while in it, and those of before afterwards.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: list[int] = []  # signals received

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._pass_on) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Run a command to its end and return its exit code. No exception, Ctrl-C's neither, leaves it running.

        Raises `Preempted` if this process was asked to stop before the command began, or so early that it died of it.
        """
        if self._asked:
            raise Preempted("seeds: stopped as asked between two runs; the same command goes on")
        self._child = child = subprocess.Popen(command)
        try:
            for number in self._asked:  # while it was being started
                child.send_signal(number)
            code = child.wait()
        finally:
            if child.poll() is None:  # after Ctrl-C, which may have been for this process alone
                child.terminate()
                child.wait()
        if -code in self._asked:
            raise Preempted("seeds: stopped as asked before a run began; the same command goes on")
        return code if code >= 0 else KILLED - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)
        if self._child:
            self._child.send_signal(number)


def fine_tune_each(cfg: FinetuneConfig, arguments: Sequence[str]) -> None:
    """Fine-tune once for each of `cfg.seeds`, in a fresh process, and print what their best steps reach.

    `arguments` are those of the command line. Runs are named NAME-seed-S; those that have ended are not run again.
    Asked to stop, it asks the run under way and begins no other. Raises `SeedError` for the first run that does not
    end with 0, and `Preempted` if the stop came where no run was under way.
    """
    if world_size() > 1:
        raise ConfigError("seeds: under torchrun each seed is a command of its own; start one with seed=S for each")
    runs = {seed: replace(cfg.run, name=f"{cfg.run.name}-seed-{seed}") for seed in cfg.seeds}
    with Children() as children:
        for seed, run in runs.items():
            code = children.run([sys.executable, "-m", "finetune", *arguments_of_one(arguments, seed, run.name)])
            if code:
                raise SeedError(seed, code)
    for line in together([best(run.directory) for run in runs.values()]):
        print(line)


def arguments_of_one(arguments: Sequence[str], seed: int, name: str) -> list[str]:
    """Return a command line for one seed: that for several, with overrides that win over it and over files."""
    return with_overrides(arguments, "++seeds=[]", f"++seed={seed}", f"++run.name={name}")


def best(run: Path) -> dict[str, float]:
    """Return what was measured at the best step of a run that has ended."""
    history = load(run)
    [row] = [row for row in history.evaluation if row["step"] == history.facts["best_step"]]
    return {key: value for key, value in row.items() if key not in NO_QUALITY}


def together(measured: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Yield a line for each metric that any of the runs has: mean, standard deviation (n - 1), and over how many seeds.

    The deviation of one value, and of values that are not all finite, is nan.
    """
    for metric in dict.fromkeys(key for one in measured for key in one):
        values = [one[metric] for one in measured if metric in one]
        known = len(values) > 1 and all(map(math.isfinite, values))
        deviation = statistics.stdev(values) if known else math.nan
        seeds = f"{len(values)} seeds" if len(values) == len(measured) else f"{len(values)} of {len(measured)} seeds"
        yield f"{metric}: {statistics.mean(values):.4f} ± {deviation:.4f} over {seeds}"
