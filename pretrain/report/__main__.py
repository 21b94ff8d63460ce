"""`python -m pretrain.report RUN [RUN ...]`: a page on one run, or one that compares several.

Holds the command; what the page says is in `run_page`, and `wandb_sync` sends runs to W&B if `--sync` is given. Free of
torch.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.commands import command
from pretrain.report.run_page import write_report
from pretrain.report.wandb_sync import add_options, check_nothing_else, sync
from pretrain.settings.options import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), _report, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="python -m pretrain.report",
        description="A page on one run, or on several.",
        example="python -m pretrain.report runs/demo",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--step", type=int, metavar="N", help="the page as of a step (default: all that is logged)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the first run)")
    add_options(parser)
    return parser


def _report(options: argparse.Namespace) -> object:
    """Write the page and return the paths of its files, or send the runs to W&B and return where they are."""
    if options.sync:
        check_nothing_else(options)
        return "\n".join(sync(run, "pretrain", options.project) for run in options.runs)
    return "\n".join(map(str, write_report(*options.runs, out=options.out, step=options.step)))


if __name__ == "__main__":
    sys.exit(main())
