"""`python -m pretrain.import_bin DIRECTORY`: write old files anew beside them, weights and tokenizers.

Holds the command line; `hub/pickled` and `hub/spm_files` read and write the files.
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
    return command(parser(), _import_bin, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="python -m pretrain.import_bin",
        description="Write the weights of an old pytorch_model.bin as safetensors beside it, and models of "
        "SentencePiece (spiece.model, sentencepiece.bpe.model, source.spm and target.spm) as tokenizer.json.",
        example="python -m pretrain.import_bin downloads/bert --model-type bert",
    )
    parser.add_argument("directory", type=Path, help="a Hugging Face directory: config.json and pytorch_model.bin")
    parser.add_argument("--model-type", help="architecture, such as bert, of files older than that setting")
    return parser


def _import_bin(options: argparse.Namespace) -> str:
    from pretrain.hub.pickled import import_bin, needs_import  # torch, which --help and a refusal do without
    from pretrain.hub.spm_files import import_tokenizer, needs_tokenizer

    directory, written = options.directory, []
    if needs_import(directory) or not needs_tokenizer(directory):
        written += import_bin(directory, options.model_type)
    if needs_tokenizer(directory):
        written += import_tokenizer(directory)
    return "\n".join(map(str, written))


if __name__ == "__main__":
    sys.exit(main())
