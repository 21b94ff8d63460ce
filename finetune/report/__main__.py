"""`python -m finetune.report RUN [FILE]`: a page on what a fine-tuned model gets right, and what it gets wrong.

What it says of answers is the task's, in its `page`; `pretrain.report` makes files of it. With `--sync` the records of
the run go to W&B instead, by `pretrain.report.wandb_sync`.
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
from finetune.report.mistakes import metric
from pretrain.commands import command
from pretrain.data.sources.locations import typed_name
from pretrain.registry import choices
from pretrain.report.curves import curve
from pretrain.report.history import History, load, page_folder
from pretrain.report.page import (
    UNKNOWN,
    Cell,
    Chart,
    Charts,
    Figures,
    Page,
    Section,
    Style,
    Styled,
    Table,
    count,
    plain,
    shortened,
)
from pretrain.report.run_sections import configuration, machine, notes, saved, state
from pretrain.report.wandb_sync import add_options, check_nothing_else, sync
from pretrain.report.writing import write_page

if TYPE_CHECKING:
    import numpy as np

    from finetune.load import Trained
    from finetune.tasks.base import Encoded, TaskConfig

OUTPUTS_ROOM = 400  # characters of the names of all outputs


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), _report, arguments)


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    description = "A page on a fine-tuned model: curves, metrics, worst errors."
    parser = trained_run_parser("python -m finetune.report", description)
    parser.add_argument(
        "source", nargs="?", help="file, or name on the hub, with answers (default: what the run was measured on)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the run)")
    add_options(parser)
    return parser


def _report(options: argparse.Namespace) -> str:
    """Write the page and return the paths of its files, or send the run to W&B and return where it is."""
    if options.sync:
        check_nothing_else(options)
        return sync(options.run, "finetune", options.project)
    return report(options)


def report(options: argparse.Namespace) -> str:
    """Write the page as the command line says, and return the paths of its files, a line each.

    Raises `ConfigError` for a directory that is no run of fine-tuning and for a file that is not there, `DataError`
    for more bad records than are allowed.
    """
    from finetune.load import open_trained  # it imports torch, which --help does without

    trained = open_trained(options.run, options.step, options.set)
    history = load(options.run)
    if options.step is not None:
        history = history.until(options.step)
    chosen = typed_name(options.source, "the data set") if options.source else None
    source = chosen or trained.cfg.task.validation  # of the run, which may be another's: no variable is filled in
    encoded = trained.encode(source, labelled=True)
    logits = trained.answers(encoded, options.max_tokens).logits
    page = page_of(trained, history, source, encoded, logits)
    return "\n".join(map(str, write_page(page, page_folder(options.run, options.out))))


def page_of(trained: Trained, history: History, source: str, encoded: Encoded, logits: list[np.ndarray]) -> Page:
    """Return the page on what a model makes of a data set, whose `logits` are as `TaskConfig.measure` takes them."""
    task = trained.cfg.task
    measured = task.measure(encoded, logits, trained.names)
    figures = {
        f"{task.metric} on {len(encoded.records):,} records": metric(measured[task.metric]),
        "Parameters": count(trained.record.get("parameters")),
        "Step": f"{trained.number:,}",
    }
    return Page(
        title=history.name,
        kind=f"Fine-tuning · {_task_name(task)}",
        lead=[Figures(figures), *notes([history])],
        sections=[
            Section("Run", [_facts(trained, history, source, encoded)]),
            Section("Training", [_curves(history, task.metric)]),
            Section("Metrics", [_metrics(task.metric, measured)]),
            *task.sections(encoded, logits, trained.names, measured),
            configuration([history]),
            machine([history]),
        ],
    )


def _curves(history: History, chosen: str) -> Charts:
    """Return the losses of a run, and the metric that chose its best step, which is ringed."""
    validation = {"name": "validation", "look": 1}
    losses = [
        curve(history, history.train, "loss", name="training", look=0),
        curve(history, history.evaluation, "loss", line=False, label=True, **validation),
    ]
    best = _best_step(history, chosen)
    measured = [curve(history, history.evaluation, chosen, label=True, dots=True, ring=best, **validation)]
    charts = [Chart("Loss", losses, logarithmic=True), Chart(f"Validation {chosen}", measured)]
    return Charts("training", charts, "step")


def _facts(trained: Trained, history: History, source: str, encoded: Encoded) -> Table:
    """Return what the run is, and what is measured here."""
    cfg, record = trained.cfg, trained.record
    sizes = record.get("records", {})  # runs from before it was recorded have none
    facts: dict[str, Cell] = {
        "Task": _task_name(cfg.task),
        "State": state(history),
        "Initial weights": record.get("init_from", cfg.init_from),
        "Parameters": count(record.get("parameters")),
        "Outputs": shortened(", ".join(trained.names), OUTPUTS_ROOM),
        "Training set": _data_set(cfg.task.train, sizes.get("training")),
        "Validation set": _data_set(cfg.task.validation, sizes.get("validation")),
        "Epochs, learning rate": f"{cfg.train.epochs:g}, {cfg.optim.lr:g}",
        **saved(history, _best_step(history, cfg.task.metric)),
        "Step of this page": f"{trained.number:,} of {max(history.last_step, trained.number):,}",
        "Data of this page": f"{_data_set(source, len(encoded.records))}, {len(encoded.examples):,} sequences",
    }
    if facts["Best step"] != UNKNOWN and not _values(history, cfg.task.metric):
        facts["Best step"] = f"{plain(facts['Best step'])}, the last: no evaluation had a value of {cfg.task.metric}"
    return Table(["", ""], list(facts.items()))


def _best_step(history: History, chosen: str) -> int | None:
    """Return the best step, so far if the run has not ended: that of the first largest value of the metric."""
    values = _values(history, chosen)
    return history.facts.get("best_step") or (max(values, key=lambda step: values[step]) if values else None)


def _values(history: History, chosen: str) -> dict[int, float]:
    rows = [row for row in history.evaluation if math.isfinite(row.get(chosen, math.nan))]
    return {int(row["step"]): row[chosen] for row in rows}


def _metrics(chosen: str, measured: Mapping[str, float]) -> Table:
    """Return the metrics, without those of single types of entities (`f1/PER`), which have a table of their own."""
    rows: list[list[Cell]] = [
        [Styled(name, Style.strong) if name == chosen else name, metric(value)]
        for name, value in measured.items()
        if "/" not in name
    ]
    return Table(["metric", "value"], rows)


def _task_name(task: TaskConfig) -> str:
    """Return the name of a task, with its problem or scheme if it has several."""
    name, problem = choices()[type(task)][1], getattr(task, "problem", None) or getattr(task, "scheme", None)
    return f"{name}, {problem}" if problem else name


def _data_set(source: str, size: int | None) -> str:
    return source if size is None else f"{source}, {size:,} records"


if __name__ == "__main__":
    sys.exit(main())
