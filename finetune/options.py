"""The options that all commands have which use a fine-tuned run.

Holds the command line; what the options mean is said where a run is opened, in `trained`. Free of torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of_use(prog: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a command that answers with a fine-tuned model."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/finetune")
    parser.add_argument("--step", type=int, default=None, help="a saved step (default: the best)")
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens at a time (default %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of a task's setting, e.g. task.columns.text=review; may be repeated",
    )
    return parser
