"""`python -m finetune.predict RUN [FILE]`: what a fine-tuned model predicts for each text, one JSON object a line.

Holds the command only; `trained` opens the run and predicts.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from collections.abc import Sequence

from finetune.options import STANDARD_INPUT, trained_run_parser
from pretrain.commands import command
from pretrain.settings.options import CommandParser
from pretrain.tracking.jsonl import to_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), predict, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "Predict for each record of a file; prints JSON lines."
    parser = trained_run_parser("python -m finetune.predict", description, "runs/finetune texts.csv")
    parser.add_argument(
        "source",
        nargs="?",
        default=STANDARD_INPUT,
        help="file with the columns of the texts; - (the default): JSON lines from standard input",
    )
    return parser


def predict(options: argparse.Namespace) -> None:
    """Print the prediction for each record."""
    from finetune.trained import load  # it imports torch, which --help and a refusal do without

    model = load(options.run, step=options.step, settings=options.set)
    encoding = sys.stdout.encoding or "utf-8"
    escaped = not encoding.lower().startswith("utf")  # else a reader would not find JSON, which is UTF-8
    for prediction in model.predict(options.source, max_tokens=options.max_tokens):
        print(to_json(prediction, ensure_ascii=escaped))


if __name__ == "__main__":
    sys.exit(main())
