"""The options of the commands that export a run; `hub.export_dir` writes what they ask for. Free of torch."""

from __future__ import annotations

from pathlib import Path

from pretrain.settings.options import CommandParser
from pretrain.settings.plugins import add_plugins_option

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # the name of each in torch and in config.json


def export_parser(prog: str, description: str, *, default_step: str) -> CommandParser:
    """Return the parser of an export command; its help describes the step exported by default as `default_step`."""
    parser = CommandParser(prog=prog, description=description, example=f"{prog} runs/demo")
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    add_plugins_option(parser)
    parser.add_argument("--step", type=int, default=None, help=f"a saved step (default: {default_step})")
    parser.add_argument("--out", type=Path, default=None, help="directory to write (default: RUN/export)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights (default %(default)s)")
    parser.add_argument("--shard-mb", type=int, default=5000, help="size of a weight file (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an export of another run or step")
    return parser
