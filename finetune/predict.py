"""`python -m finetune.predict RUN [FILE]`: what a fine-tuned model says of texts, one JSON object a line.

Holds the command line; predictions are the task's.
"""

from __future__ import annotations

import os
import sys

from finetune.data.records import STANDARD_INPUT
from finetune.load import open_trained
from finetune.options import parser_of_use
from pretrain.errors import HeadwaterError
from pretrain.tracking.jsonl import to_json


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    description = "Answer for each record of a file; prints JSON lines."
    parser = parser_of_use("python -m finetune.predict", description)
    parser.add_argument(
        "source",
        nargs="?",
        default=STANDARD_INPUT,
        help="file with the columns of the texts; - (the default): JSON lines from standard input",
    )
    options = parser.parse_args(arguments)
    try:
        trained = open_trained(options.run, options.step, options.set)
        encoded = trained.encode(options.source, labelled=False)
        found = trained.answers(encoded, options.max_tokens)
        for prediction in trained.cfg.task.predict(encoded, found.logits, trained.names):
            print(to_json(prediction, ensure_ascii=False))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the lines has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
