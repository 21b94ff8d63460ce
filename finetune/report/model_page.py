"""The page on a fine-tuned model: its training, its metrics on a data set, what it gets right and what it gets wrong.

What it says of answers is the task's, in its `page`; `pretrain.report` makes files of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune.report.mistakes import metric
from finetune.tasks.base import LOWER_IS_BETTER
from pretrain.registry import choices
from pretrain.report.curves import curve
from pretrain.report.history import History
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
from pretrain.report.run_sections import configuration, machine, notes, profiles, saved, state

if TYPE_CHECKING:
    from finetune.answering.base import Answers, Encoded
    from finetune.config import FinetuneConfig
    from finetune.tasks.base import TaskConfig

OUTPUTS_ROOM = 400  # characters of the names of all outputs


def page_of(cfg: FinetuneConfig, step: int, history: History, source: str, answers: Answers) -> Page:
    """Return the page on what the model of a step makes of the data set `source`."""
    task, names = cfg.task, history.facts["names"]
    encoded, each, figures = answers
    measured = figures | task.measure(encoded, each, names)
    headline = {
        f"{task.metric} on {len(encoded.records):,} records": metric(measured[task.metric]),
        "Parameters": count(history.facts.get("parameters")),
        "Step": f"{step:,}",
    }
    return Page(
        title=history.name,
        kind=f"Fine-tuning · {_task_name(task)}",
        lead=[Figures(headline), *notes([history])],
        sections=[
            Section("Run", [_facts(cfg, step, history, source, encoded)]),
            Section("Training", [_curves(history, task.metric)]),
            Section("Metrics", [_metrics(task.metric, measured)]),
            *task.sections(encoded, each, names, measured),
            *profiles([history]),
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


def _facts(cfg: FinetuneConfig, step: int, history: History, source: str, encoded: Encoded) -> Table:
    """Return what the run is, and what is measured here."""
    record = history.facts
    sizes = record.get("records", {})  # runs from before it was recorded have none
    facts: dict[str, Cell] = {
        "Task": _task_name(cfg.task),
        "State": state(history),
        "Initial weights": record.get("init_from", cfg.init_from) or "drawn",
        "Parameters": count(record.get("parameters")),
        **({"Outputs": shortened(", ".join(record["names"]), OUTPUTS_ROOM)} if record["names"] else {}),
        "Training set": _data_set(cfg.task.train, sizes.get("training")),
        "Validation set": _data_set(cfg.task.validation, sizes.get("validation")),
        "Epochs, learning rate": f"{cfg.train.epochs:g}, {cfg.optim.lr:g}",
        **saved(history, _best_step(history, cfg.task.metric)),
        "Step of this page": f"{step:,} of {max(history.last_step, step):,}",
        "Data of this page": f"{_data_set(source, len(encoded.records))}, {len(encoded.examples):,} sequences",
    }
    if facts["Best step"] != UNKNOWN and not _values(history, cfg.task.metric):
        facts["Best step"] = f"{plain(facts['Best step'])}, the last: no evaluation had a value of {cfg.task.metric}"
    return Table(["", ""], list(facts.items()))


def _best_step(history: History, chosen: str) -> int | None:
    """Return the best step, so far if the run has not ended: that of the first best value of the metric."""
    values, best = _values(history, chosen), min if chosen in LOWER_IS_BETTER else max
    return history.facts.get("best_step") or (best(values, key=lambda step: values[step]) if values else None)


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
    name = choices()[type(task)][1]
    return f"{name}, {task.variety}" if task.variety else name


def _data_set(source: str, size: int | None) -> str:
    return source if size is None else f"{source}, {size:,} records"
