"""`headwater COMMAND ...`: all commands under one name; each is what `python -m` runs.

Holds the names of commands, and what decides between pretraining and fine-tuning where a name stands for both. Free of
torch and Hydra until a run is looked at.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from pretrain.commands import exit_code_of, signals_held
from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest


class Command(NamedTuple):
    """A command of `headwater`."""

    words: tuple[str, ...]  # behind `python -m`: the module, and what comes before the words that were typed
    about: str
    of_finetuning: str = ""  # the module for runs of fine-tuning, where that is another


COMMANDS = {
    "prepare": Command(("pretrain.prepare",), "turn text into a corpus of tokens"),
    "pretrain": Command(("pretrain",), "train a model on corpora"),
    "finetune": Command(("finetune",), "train a model for a task"),
    "sample": Command(("pretrain.sample",), "let a model continue texts"),
    "evaluate": Command(("pretrain.evaluate",), "measure a model on data", "finetune.evaluate"),
    "predict": Command(("finetune.predict",), "what a fine-tuned model predicts"),
    "report": Command(("pretrain.report",), "a page on runs: curves, results, errors", "finetune.report"),
    "export": Command(("pretrain.export",), "a directory that transformers loads", "finetune.export"),
    "average": Command(("pretrain.average",), "the mean of the weights of a run's steps"),
    "runs": Command(("pretrain.report.listing",), "list runs: state, step, loss, size"),
    "launch": Command(("launch",), "start ranks, sweeps and jobs on Slurm"),
    "doctor": Command(("launch", "doctor"), "examine what a run will need"),
    "table": Command(("launch.table",), "where runs differ, and what they reached"),
    "detour": Command(("pretrain.detour",), "take a run back, and around a range of its data"),
    "replay": Command(("pretrain.replay",), "take recorded steps again: is it the data or the hardware?"),
    "import_bin": Command(("pretrain.import_bin",), "old pytorch_model.bin as safetensors"),
    "completion": Command(("launch.completion",), "a script that completes commands: bash, zsh or fish"),
}
MODULES = {"launch.doctor"}.union(*((each.words[0], each.of_finetuning) for each in COMMANDS.values())) - {""}
HELP = ("-h", "--help")


def script() -> NoReturn:
    """Be the installed command `headwater`."""
    start_command()
    sys.exit(main())


def main(words: Sequence[str] | None = None) -> int:
    """Become the process that `python -m` would be; return the exit code where there is nothing to become."""
    return exit_code_of(lambda: _run(sys.argv[1:] if words is None else words))


def _run(words: Sequence[str]) -> None:
    if not words:
        raise ConfigError(help_text())
    name, rest = words[0], words[1:]
    if name in HELP:
        print(help_text())
    elif name == "--version":
        from pretrain.settings.options import version_text

        print(version_text())
    else:
        with signals_held():  # until the new process can handle them
            os.execv(sys.executable, [sys.executable, "-m", *command_line(name, rest)])


def command_line(name: str, words: Sequence[str]) -> list[str]:
    """Return the words behind `python -m`. Raises `ConfigError` for an unknown command."""
    if name in MODULES:
        return [name, *words]
    if name not in COMMANDS:
        known = f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(f"{name}: no such command{nearest(name, [*COMMANDS, *MODULES])} ({known})")
    command = COMMANDS[name]
    if not command.of_finetuning:
        return [*command.words, *words]
    if set(words) & {*HELP}:
        print(f"For runs of fine-tuning: headwater {command.of_finetuning} --help\n", flush=True)
    return [command.of_finetuning if _program_of(words) == "finetune" else command.words[0], *words]


def _program_of(words: Sequence[str]) -> str | None:
    """Return the program of the first run among the words of a command, None if there is none."""
    from pretrain.train.run_dir.record import program_of  # it imports Hydra

    runs = (program_of(Path(word)) for word in words if not word.startswith("-"))
    return next(filter(None, runs), None)


def help_text() -> str:
    """Return what `headwater --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: headwater COMMAND ...",
            "",
            *lines,
            "",
            "headwater COMMAND --help says more; headwater --version prints versions. Every command is a module, too:",
            "headwater finetune.report and python -m finetune.report are the same as headwater report for a run of",
            "fine-tuning. evaluate, report and export look at the run that is named.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
