"""`python -m finetune.evaluate RUN FILE`: measure a fine-tuned model on labelled data.

Holds the command only; `trained` opens the run and measures.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from collections.abc import Sequence

from finetune.options import trained_run_parser
from pretrain.commands import command
from pretrain.settings.options import CommandParser
from pretrain.tracking.jsonl import to_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), evaluate, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "Measure a fine-tuned model; prints one JSON object."
    parser = trained_run_parser("python -m finetune.evaluate", description, "runs/finetune validation.csv")
    parser.add_argument(
        "source", help="file, or name on the hub, with the columns that training had; -: JSON lines from standard input"
    )
    return parser


def evaluate(options: argparse.Namespace) -> str:
    """Return the metrics as one JSON object."""
    from finetune.trained import load  # it imports torch, which --help and a refusal do without

    model = load(options.run, step=options.step, settings=options.set)
    return to_json(model.evaluate(options.source, max_tokens=options.max_tokens))


if __name__ == "__main__":
    sys.exit(main())
