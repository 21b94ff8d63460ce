"""`python -m finetune.evaluate RUN FILE`: measure a fine-tuned model on a data set with answers.

Holds the command line; metrics are the task's.
"""

from __future__ import annotations

import sys

from finetune.load import open_trained
from finetune.options import parser_of_use
from pretrain.errors import HeadwaterError
from pretrain.tracking.jsonl import to_json


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    description = "Measure a fine-tuned model; prints one JSON object."
    parser = parser_of_use("python -m finetune.evaluate", description)
    parser.add_argument(
        "source", help="file, or name on the hub, with the columns that training had; -: JSON lines from standard input"
    )
    options = parser.parse_args(arguments)
    try:
        trained = open_trained(options.run, options.step, options.set)
        encoded = trained.encode(options.source, labelled=True)
        found = trained.answers(encoded, options.max_tokens)
        print(to_json(trained.cfg.task.measure(encoded, found.logits, trained.names)))
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
