"""The options shared by the commands that use a fine-tuned run.

Holds the parser and the defaults of its options; `trained` opens the run. Free of torch.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.settings.options import CommandParser
from pretrain.settings.plugins import add_plugins_option

STANDARD_INPUT = "-"  # in place of a file's name
MAX_TOKENS = 8192  # in one pass of the model; of longer sequences it takes one at a time


def trained_run_parser(prog: str, description: str, example: str) -> CommandParser:
    """Return a parser of the run, the step and the settings to change; `example` is what may follow `prog`."""
    parser = CommandParser(prog=prog, description=description, example=f"{prog} {example}")
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/finetune")
    add_plugins_option(parser)
    parser.add_argument("--step", type=int, default=None, help="a saved step (default: the best)")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="tokens at a time (default %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of a task's setting, e.g. task.columns.text=review; may be repeated",
    )
    return parser
