"""`python -m launch MODE SETTINGS -- PROGRAM SETTINGS`: start ranks on this machine or on a cluster.

    python -m launch local nproc=2 -- pretrain experiment=demo
    python -m launch local -- finetune task=qa ... 'optim.lr=1e-5,3e-5' 'seed=range(3)'
    python -m launch slurm cluster=NAME nodes=4 -- pretrain experiment=llama_1b
    python -m launch slurm cluster=NAME parts=16 -- pretrain.prepare data=jsonl ...
    python -m launch doctor cluster=NAME nodes=4 -- pretrain experiment=llama_1b

A setting with several values makes a sweep. `--help` after MODE or PROGRAM lists the settings of either.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch.jobs import PREPARE, PROGRAMS, corpora_root, jobs_of
from launch.local import LOCAL, LocalConfig, examine_here, run_local
from launch.slurm.submit import SLURM, SlurmConfig, examine_nodes, submit_preparation, submit_runs
from launch.sweep import expand
from pretrain.compose import Root, hydra_command

Program = Sequence[str]
"""The words after `--`: a module and its settings."""


def local(cfg: LocalConfig, program: Program) -> int:
    """Run on this machine; return the exit code."""
    return run_local(cfg, jobs_of(program))


def slurm(cfg: SlurmConfig, program: Program) -> int:
    """Submit to Slurm; return the exit code."""
    if program[:1] == [PREPARE]:
        submit_preparation(cfg, program[1:], corpora_root(program[1:]) / "slurm")
    else:
        submit_runs(cfg, jobs_of(program))
    return 0


def doctor_here(cfg: LocalConfig, program: Program) -> int:
    """Examine this machine for a run, of a sweep the first; return the exit code."""
    return examine_here(cfg, [*program[:1], *expand(program[1:])[0].overrides])


def doctor_on_nodes(cfg: SlurmConfig, program: Program) -> int:
    """Examine nodes of a cluster for a run, of a sweep the first; return the exit code."""
    return examine_nodes(cfg, jobs_of(program)[0])


def mode_of(word: str, settings: Sequence[str]) -> tuple[Root, Callable[[Any, Program], int]] | None:
    """Return what a mode is configured by and what it does, None for a word that is no mode."""
    if word == "doctor":
        on_nodes = any(setting.startswith("cluster=") for setting in settings)
        return (SLURM, doctor_on_nodes) if on_nodes else (LOCAL, doctor_here)
    return {"local": (LOCAL, local), "slurm": (SLURM, slurm)}.get(word)


def main() -> None:
    """Split the words at `--` and run the mode."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    word, *settings = words[:at] or [""]
    mode, asks_for_help = mode_of(word, settings), word in ("-h", "--help")
    if mode is None:
        print(__doc__, file=sys.stdout if asks_for_help else sys.stderr)
        sys.exit(0 if asks_for_help else 2)
    if strays := [setting for setting in settings if setting in (*PROGRAMS, PREPARE)]:
        print(f"{strays[0]}: put -- before the program", file=sys.stderr)
        sys.exit(2)
    root, run = mode
    sys.argv = [f"launch {word}", *settings]
    try:
        hydra_command(lambda cfg: sys.exit(run(cfg, words[at + 1 :])), root)
    except KeyboardInterrupt:  # the ranks have ended by now
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
