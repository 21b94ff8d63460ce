"""`python -m finetune.predict RUN [FILE]`: what a fine-tuned model says of texts, one JSON object a line.

Holds the command line; predictions are the task's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.trained import open_trained
from pretrain.errors import HeadwaterError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.predict", description="Answer for each record of a file; prints JSON lines."
    )
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/finetune")
    parser.add_argument(
        "source",
        nargs="?",
        default="-",
        help="file with the columns of the texts; - (the default): JSON lines from standard input",
    )
    parser.add_argument("--step", type=int, default=None, help="a saved step (default: the best)")
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens at a time (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        trained = open_trained(options.run, options.step)
        with _file(options.source) as source:
            encoded = trained.encode(source, labelled=False)
        found = trained.answers(encoded, options.max_tokens)
        for prediction in trained.cfg.task.predict(encoded, found.logits, trained.names):
            print(json.dumps(prediction, ensure_ascii=False))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the lines has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


@contextmanager
def _file(source: str) -> Iterator[str]:
    """Give the name of a file with the records; standard input becomes one."""
    if source != "-":
        yield source
        return
    with tempfile.NamedTemporaryFile(prefix="standard-input-", suffix=".jsonl") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


if __name__ == "__main__":
    sys.exit(main())
