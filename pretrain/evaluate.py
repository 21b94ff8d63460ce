"""`python -m pretrain.evaluate MODEL [TEXT ...]`: measure pretrained models on text.

Holds the command and its table; what is measured is in `trained.measuring`. Worker processes that prepare text import
this module too, so nothing heavy is imported at its top.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pretrain.commands import command
from pretrain.settings.options import CommandParser
from pretrain.settings.plugins import add_plugins_option

LINE_EVERY_S = 10.0  # seconds between two lines of progress where there is no terminal

# What a row of the table shows, and how.
ROWS = {
    "loss": ("loss, nats a target", "{:.4f}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "sentence_loss": ("loss of sentences", "{:.4f}"),
    "sentence_accuracy": ("accuracy of sentences", "{:.2%}"),
    "replaced_accuracy": ("accuracy of replaced tokens", "{:.2%}"),
    "documents": ("documents", "{:,}"),
    "text_bytes": ("bytes of text", "{:,}"),
    "tokens": ("tokens", "{:,}"),
    "no_target": ("of them no target", "{:,}"),
    "seq_len": ("tokens in a slot, at most", "{:,}"),
}
# And of a set of questions, choices/NAME, by what follows its name.
ROWS_OF_CHOICES = {
    "": ("right answers", "{:.2%}"),
    "/raw": ("by likelihoods that are not divided", "{:.2%}"),
    "/chance": ("by chance", "{:.2%}"),
    "/questions": ("questions", "{:,}"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), evaluate, arguments)


def evaluate(options: argparse.Namespace) -> str:
    """Return a table of the models, or a JSON object a line for each."""
    from pretrain.tracking.jsonl import to_json
    from pretrain.trained.measuring import measurement
    from pretrain.trained.model import load

    found: list[dict[str, Any]] = []
    models = [load(name, step=options.step) for name in (options.model, *options.against)]
    chosen = (options.text, options.choices, options.set, options.precision)
    plans = [measurement(model.source, *chosen) for model in models]  # what is refused is refused before all else
    while models:
        model, plan = models.pop(0), plans.pop(0)  # the one before gives its memory back
        with _progress(f"measuring {model.name}") as show:
            figures = plan.run(model.module, model.device, show)
        found.append({"model": model.name, "step": model.step, **figures})
    if options.json:
        return "\n".join(map(to_json, found))
    return table(found)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return what was found as a table, a column for each model."""
    heads = [each["model"] if each["step"] is None else f"{each['model']}, step {each['step']}" for each in found]
    for each in found:
        if "tokens" in each:
            each["no_target"] = each["tokens"] - each["targets"]
    rows = [["", *heads]]
    for key, (label, form) in (ROWS | _rows_of_choices(found)).items():
        if any(key in each for each in found):
            rows.append([label, *(form.format(each[key]) if key in each else "" for each in found)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])) for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def _rows_of_choices(found: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    from pretrain.tracking.base import CHOICES

    names = dict.fromkeys(key.split("/")[1] for each in found for key in each if key.startswith(CHOICES))
    return {
        f"{CHOICES}{name}{part}": (f"{name}: {label}", form)
        for name in names
        for part, (label, form) in ROWS_OF_CHOICES.items()
    }


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how much of all has been measured, once that takes a while."""
    from pretrain.tracking.console import takes_bar

    next_line = time.monotonic() + LINE_EVERY_S

    def line(done: int, total: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            print(f"{title}: {done:,} of {total:,}", file=sys.stderr, flush=True)
            next_line = time.monotonic() + LINE_EVERY_S

    if not takes_bar(sys.stderr):
        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = (
        "Measure a pretrained model: loss, perplexity, bits per byte, accuracy, answers to questions. Without TEXT and "
        "--choices on the text that its run held out, where the figures are those of its own evaluation."
    )
    parser = CommandParser(
        prog="python -m pretrain.evaluate",
        description=description,
        example="python -m pretrain.evaluate runs/demo book.txt",
    )
    model = "run directory, e.g. runs/demo; also an export, a Hugging Face directory or org/name on the hub"
    parser.add_argument("model", metavar="MODEL", help=model)
    add_plugins_option(parser)
    text = "file, pattern or URL of text, JSON lines or Parquet; a prepared corpus; org/name of a data set on the hub"
    parser.add_argument("text", nargs="*", metavar="TEXT", help=text)
    questions = "files of multiple-choice questions, JSON lines with context, choices and answer, for decoders"
    parser.add_argument("--choices", nargs="+", action="extend", default=[], metavar="FILE", help=questions)
    others = "more models, measured on the same text and shown beside the first"
    parser.add_argument("--against", nargs="+", action="extend", default=[], metavar="MODEL", help=others)
    parser.add_argument("--step", type=int, default=None, help="a saved step of each run (default: the newest)")
    change = "a setting of the text, e.g. documents=line, field=review or source=jsonl, or of the run, e.g. "
    change += "data.seq_len=512; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)
    compute = "what matrix products run in (default: that of the run; fp32 for others)"
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help=compute)
    parser.add_argument("--json", action="store_true", help="print a JSON object for each model, one a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
