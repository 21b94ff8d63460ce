"""`python -m finetune.evaluate RUN FILE`: measure a fine-tuned model on a data set with answers.

Holds the command line; metrics are the task's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from finetune.trained import open_trained
from pretrain.errors import HeadwaterError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.evaluate", description="Measure a fine-tuned model; prints one JSON object."
    )
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/finetune")
    parser.add_argument("source", help="file, or name on the hub, with the columns that training had")
    parser.add_argument("--step", type=int, default=None, help="a saved step (default: the best)")
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens at a time (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        trained = open_trained(options.run, options.step)
        encoded = trained.encode(options.source, labelled=True)
        found = trained.answers(encoded, options.max_tokens)
        print(json.dumps(trained.cfg.task.measure(encoded, found.logits, trained.names)))
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
