"""`python -m finetune.report RUN [FILE]`: a page on what a fine-tuned model gets right, and what it gets wrong.

Holds the command only; `finetune.trained` opens the run and writes the page. With `--sync` the records of the run go to
W&B instead, by `pretrain.report.wandb_sync`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path

from finetune.options import trained_run_parser
from pretrain.commands import command
from pretrain.report.wandb_sync import add_options, check_nothing_else, sync
from pretrain.settings.options import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), _report, arguments)


def _report(options: argparse.Namespace) -> str:
    """Write the page and return the paths of its files, or send the run to W&B and return where it is."""
    if options.sync:
        check_nothing_else(options)
        return sync(options.run, "finetune", options.project)
    return report(options)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "A page on a fine-tuned model: curves, metrics, worst errors."
    parser = trained_run_parser("python -m finetune.report", description, "runs/finetune")
    parser.add_argument(
        "source", nargs="?", help="file, or name on the hub, with answers (default: what the run was measured on)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the run)")
    add_options(parser)
    return parser


def report(options: argparse.Namespace) -> str:
    """Write the page as the command line says, and return the paths of its files, a line each."""
    from finetune.trained import load  # it imports torch, which --help does without

    model = load(options.run, step=options.step, settings=options.set)
    return "\n".join(map(str, model.report(options.source, out=options.out, max_tokens=options.max_tokens)))


if __name__ == "__main__":
    sys.exit(main())
