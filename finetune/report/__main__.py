"""`python -m finetune.report RUN [FILE]`: a page on what a fine-tuned model gets right, and what it gets wrong.

What it says of answers is the task's, in its `page`. With `--sync` the records of the run go to W&B instead, by
`pretrain.report.wandb_sync`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.options import trained_run_parser
from finetune.report.figures import draw_training
from finetune.report.page import Section, clipped, value_text, write_page
from pretrain.commands import command
from pretrain.data.sources.locations import typed_name
from pretrain.registry import choices
from pretrain.report.history import History, load, page_folder
from pretrain.report.markdown import UNKNOWN, count, literal, table
from pretrain.report.wandb_sync import add_options, sync
from pretrain.settings.options import CommandParser

if TYPE_CHECKING:
    from finetune.load import Trained
    from finetune.tasks.base import Encoded, TaskConfig

OUTPUTS_ROOM = 400  # characters of the names of all outputs


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(
        parser(),
        lambda options: sync(options.run, "finetune", options.project) if options.sync else report(options),
        arguments,
    )


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "A page on a fine-tuned model: curves, metrics, worst errors."
    parser = trained_run_parser("python -m finetune.report", description, "runs/finetune")
    parser.add_argument(
        "source", nargs="?", help="file, or name on the hub, with answers (default: what the run was measured on)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the run)")
    add_options(parser)
    return parser


def report(options: argparse.Namespace) -> Path:
    """Write the page and its figures as the command line says, and return the page's path.

    Raises `ConfigError` for a directory that is no run of fine-tuning and for a file that is not there, `DataError`
    for more bad records than are allowed.
    """
    from finetune.load import open_trained  # it imports torch, which --help does without

    trained = open_trained(options.run, options.step, options.set)
    history = load(options.run)
    chosen = typed_name(options.source, "the data set") if options.source else None
    source = chosen or trained.cfg.task.validation  # of the run, which may be another's: no variable is filled in
    encoded = trained.encode(source, labelled=True)
    logits = trained.answers(encoded, options.max_tokens).logits
    task = trained.cfg.task
    measured = task.measure(encoded, logits, trained.names)
    sections = [
        Section("Run", _facts(trained, history, source, encoded)),
        Section("Training", "", draw_training(history, task.metric, trained.record.get("best_step"))),
        Section("Metrics", _metrics(task.metric, measured)),
        *task.sections(encoded, logits, trained.names, measured),
    ]
    return write_page(history.name, sections, page_folder(options.run, options.out))


def _facts(trained: Trained, history: History, source: str, encoded: Encoded) -> str:
    """Return what the run is, and what is measured here, as a table."""
    cfg, record = trained.cfg, trained.record
    sizes = record.get("records", {})  # runs from before it was recorded have none
    best, last = record.get("best_step"), history.train[-1]["step"] if history.train else trained.number
    facts = {
        "Task": literal(_task_name(cfg.task)),
        "Initial weights": literal(record.get("init_from", cfg.init_from)),
        "Parameters": count(record.get("parameters")),
        "Outputs": clipped(", ".join(trained.names), OUTPUTS_ROOM),
        "Training set": _data_set(cfg.task.train, sizes.get("training")),
        "Validation set": _data_set(cfg.task.validation, sizes.get("validation")),
        "Epochs, learning rate": f"{cfg.train.epochs:g}, {cfg.optim.lr:g}",
        "Best step": UNKNOWN if best is None else f"{best:,}{_without_value(history, cfg.task.metric)}",
        "Step of this page": f"{trained.number:,} of {last:,.0f}",
        "Data of this page": f"{_data_set(source, len(encoded.records))}, {len(encoded.examples):,} sequences",
    }
    return table(["", ""], list(facts.items()))


def _without_value(history: History, metric: str) -> str:
    measured = any(math.isfinite(row.get(metric, math.nan)) for row in history.evaluation)
    return "" if measured else f", the last: no evaluation had a value of {metric}"


def _metrics(chosen: str, measured: Mapping[str, float]) -> str:
    """Return the metrics as a table, without those of single types of entities (`f1/PER`), which have their own."""
    shown = [(name, value_text(value)) for name, value in measured.items() if "/" not in name]
    return table(["metric", "value"], [(f"**{name}**" if name == chosen else name, value) for name, value in shown])


def _task_name(task: TaskConfig) -> str:
    """Return the name of a task, with its problem or scheme if it has several."""
    name, problem = choices()[type(task)][1], getattr(task, "problem", None) or getattr(task, "scheme", None)
    return f"{name}, {problem}" if problem else name


def _data_set(source: str, size: int | None) -> str:
    return literal(source) if size is None else f"{literal(source)}, {size:,} records"


if __name__ == "__main__":
    sys.exit(main())
