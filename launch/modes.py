"""What the modes of `launch` do with their settings and a program.

Holds the table; `__main__` splits the words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from launch.jobs import PREPARE, PROGRAMS, REPLAY, corpora_root, jobs_of, without_secrets
from launch.local import LOCAL, LocalConfig, examine_here, replay_here, run_local
from launch.slurm.submit import SLURM, SlurmConfig, examine_nodes, submit_preparation, submit_runs
from launch.sweep import expand
from pretrain.compose import Root, hydra_command
from pretrain.errors import ConfigError

Program = Sequence[str]
"""The words after `--`: a module and its settings."""


def submit(cfg: SlurmConfig, program: Program) -> None:
    """Submit runs, or a preparation, to Slurm."""
    if program[:1] == [PREPARE]:
        submit_preparation(cfg, program[1:], corpora_root(program[1:]) / "slurm")
    else:
        submit_runs(cfg, jobs_of(program))


def run_here(cfg: LocalConfig, program: Program) -> int:
    """Run a run, a sweep or a replay on this machine; return the exit code."""
    return replay_here(cfg, program[1:]) if program[:1] == [REPLAY] else run_local(cfg, jobs_of(program))


def first_of(program: Program) -> Program:
    """Return the first run of a sweep."""
    return [*program[:1], *expand(program[1:])[0].overrides]


# What a mode is configured by, and what it does: it returns an exit code, or None for 0.
MODES: dict[str, tuple[Root, Callable[[Any, Program], int | None]]] = {
    "local": (LOCAL, run_here),
    "slurm": (SLURM, submit),
    "doctor": (LOCAL, lambda cfg, program: examine_here(cfg, first_of(program))),
    "doctor on nodes": (SLURM, lambda cfg, program: examine_nodes(cfg, jobs_of(program)[0])),
}


def run_mode(mode: str, settings: Sequence[str], program: Program) -> NoReturn:
    """Compose the settings of a mode, run it, and exit."""
    if strays := [word for word in settings if word in (*PROGRAMS, PREPARE, REPLAY)]:
        print(f"{strays[0]}: put -- before the program", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    named = {"prepare": PREPARE, "replay": REPLAY}  # names under `headwater`
    program = [*(named.get(word, word) for word in program[:1]), *program[1:]]
    on_nodes = mode == "doctor" and any(setting.startswith("cluster=") for setting in settings)
    root, run = MODES["doctor on nodes" if on_nodes else mode]
    hydra_command(lambda cfg: sys.exit(run(cfg, without_secrets(program))), root, settings)
