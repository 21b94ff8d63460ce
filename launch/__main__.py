"""`python -m launch MODE SETTINGS -- PROGRAM SETTINGS`: start ranks on this machine or on a cluster.

    python -m launch local nproc=2 -- pretrain experiment=demo
    python -m launch local -- finetune task=qa ... 'optim.lr=1e-5,3e-5' 'seed=range(3)'
    python -m launch slurm cluster=NAME nodes=4 -- pretrain experiment=llama_1b
    python -m launch slurm cluster=NAME parts=16 -- pretrain.prepare data=jsonl ...
    python -m launch doctor cluster=NAME nodes=4 -- pretrain experiment=llama_1b

A setting with several values makes a sweep. `--help` after MODE or PROGRAM lists the settings of either.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch.jobs import PREPARE, PROGRAMS, corpora_root, jobs_of, without_secrets
from launch.local import LOCAL, examine_here, run_local
from launch.slurm.submit import SLURM, SlurmConfig, examine_nodes, submit_preparation, submit_runs
from launch.sweep import expand
from pretrain.compose import Root, hydra_command

Program = Sequence[str]
"""The words after `--`: a module and its settings."""


def submit(cfg: SlurmConfig, program: Program) -> None:
    """Submit runs, or a preparation, to Slurm."""
    if program[:1] == [PREPARE]:
        submit_preparation(cfg, program[1:], corpora_root(program[1:]) / "slurm")
    else:
        submit_runs(cfg, jobs_of(program))


def first_of(program: Program) -> Program:
    """Return the first run of a sweep."""
    return [*program[:1], *expand(program[1:])[0].overrides]


# What a mode is configured by, and what it does: it returns an exit code, or None for 0.
MODES: dict[str, tuple[Root, Callable[[Any, Program], int | None]]] = {
    "local": (LOCAL, lambda cfg, program: run_local(cfg, jobs_of(program))),
    "slurm": (SLURM, submit),
    "doctor": (LOCAL, lambda cfg, program: examine_here(cfg, first_of(program))),
    "doctor on nodes": (SLURM, lambda cfg, program: examine_nodes(cfg, jobs_of(program)[0])),
}


def main() -> None:
    """Split the words at `--` and run the mode."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    word, *settings = words[:at] or [""]
    if word not in MODES:
        asks_for_help = word in ("-h", "--help")
        print(__doc__, file=sys.stdout if asks_for_help else sys.stderr)
        sys.exit(0 if asks_for_help else 2)
    if strays := [setting for setting in settings if setting in (*PROGRAMS, PREPARE)]:
        print(f"{strays[0]}: put -- before the program", file=sys.stderr)
        sys.exit(2)
    on_nodes = word == "doctor" and any(setting.startswith("cluster=") for setting in settings)
    root, run = MODES["doctor on nodes" if on_nodes else word]
    hydra_command(lambda cfg: sys.exit(run(cfg, without_secrets(words[at + 1 :]))), root, settings)


if __name__ == "__main__":
    main()
