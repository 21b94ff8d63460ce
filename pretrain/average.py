"""`python -m pretrain.average RUN --last N`: the mean of the weights of several steps, as a run.

Holds the command line; the reading and writing are in `trained.averaged`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path

from pretrain.commands import command
from pretrain.settings.options import CommandParser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), _average, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="python -m pretrain.average",
        description="Write the mean of the weights of a run's newest saved steps as a run directory, without moments, "
        "that evaluate, sample, export and init_from take.",
        example="python -m pretrain.average runs/demo --last 5",
    )
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    parser.add_argument("--last", type=int, required=True, help="how many of the newest saved steps, at least 2")
    decay = "decay of an exponential moving average: what a step counts beside the next one saved (default: all alike)"
    parser.add_argument("--ema", type=float, default=None, help=decay)
    place = "directory to write, which must not exist (default: that of the run, with -mean behind it)"
    parser.add_argument("--out", type=Path, default=None, help=place)
    return parser


def _average(options: argparse.Namespace) -> str:
    from pretrain.trained.averaged import average  # torch, which --help and a refusal do without

    out = options.out or options.run.with_name(f"{options.run.name}-mean")
    return average(options.run, options.last, out, options.ema)


if __name__ == "__main__":
    sys.exit(main())
