"""`python -m pretrain.export RUN`: write a run's weights as a directory that `transformers` loads.

Holds the command line; names and settings are in `hub/family`, files in `hub/export_dir`, the rest in `trained.model`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path

from pretrain.commands import command
from pretrain.settings.export_options import export_parser
from pretrain.settings.options import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), export_run, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "Write the weights of a run as a directory that Hugging Face transformers loads."
    return export_parser("python -m pretrain.export", description, default_step="the newest that verifies")


def export_run(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for a model of no family."""
    from pretrain.trained.model import load  # it imports torch, which --help and a refusal do without

    model = load(options.run, step=options.step, device="cpu")
    return model.export(options.out, dtype=options.dtype, shard_mb=options.shard_mb, overwrite=options.overwrite)


if __name__ == "__main__":
    sys.exit(main())
