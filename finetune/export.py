"""`python -m finetune.export RUN`: write a fine-tuned model as a directory that `transformers` and its pipelines load.

Holds the command only; `trained` opens the run and exports it.
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
    description = "Write the best step of a run as a directory that Hugging Face transformers loads."
    parser = export_parser("python -m finetune.export", description, default_step="the best")
    parser.add_argument(
        "--adapters",
        action="store_true",
        help="write what tuning=lora has learnt alone, for `peft`, without the weights below (to RUN/adapters)",
    )
    return parser


def export_run(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for a model of no family."""
    from finetune.trained import load  # it imports torch, which --help and a refusal do without

    model = load(options.run, step=options.step)
    return model.export(
        options.out,
        dtype=options.dtype,
        shard_mb=options.shard_mb,
        overwrite=options.overwrite,
        adapters=options.adapters,
    )


if __name__ == "__main__":
    sys.exit(main())
