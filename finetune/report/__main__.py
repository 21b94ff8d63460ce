"""`python -m finetune.report RUN [FILE]`: a page on what a fine-tuned model gets right, and what it gets wrong.

Holds the command and the page; what it says of answers is the task's, in `sections`, and `figures` draws. With `--sync`
the records of the run go to W&B instead, which is `pretrain.report.wandb_sync`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.options import trained_run_parser
from finetune.report.figures import draw_training
from finetune.report.page import Picture, Section, clipped, value_text
from pretrain.errors import ConfigError, command
from pretrain.registry import choices
from pretrain.report.history import History, load
from pretrain.report.markdown import UNKNOWN, count, literal, table
from pretrain.report.wandb_sync import add_options, sync

if TYPE_CHECKING:
    from finetune.load import Trained
    from finetune.tasks.base import Encoded, TaskConfig

PAGE = "report.md"
LABELS_ROOM = 400  # characters of the names of labels


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    description = "A page on a fine-tuned model: curves, metrics, worst errors."
    parser = trained_run_parser("python -m finetune.report", description)
    parser.add_argument(
        "source", nargs="?", help="file, or name on the hub, with answers (default: what the run was measured on)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the run)")
    add_options(parser)
    return command(
        parser,
        lambda options: sync(options.run, "finetune", options.project) if options.sync else report(options),
        arguments,
    )


def report(options: argparse.Namespace) -> Path:
    """Write the page and its figures as the command line says, and return the page's path.

    Raises `ConfigError` for what is no run of fine-tuning and for a file that is not there, `DataError` for bad
    records beyond the share that is allowed.
    """
    from finetune.load import open_trained  # it imports torch, which --help does without

    trained = open_trained(options.run, options.step, options.set)
    history = load(options.run)
    source = options.source or trained.cfg.task.validation
    encoded = trained.encode(source, labelled=True)
    found = trained.answers(encoded, options.max_tokens)
    task, best = trained.cfg.task, trained.record.get("best_step")
    measured = task.measure(encoded, found.logits, trained.names)
    curves = Picture(
        "training",
        f"Loss and {task.metric} over the steps of the run",
        lambda path: draw_training(history, task.metric, best, path),
    )
    page = [
        Section("What it is", [_facts(trained, history, source, encoded)]),
        Section("How it was trained", [curves]),
        Section("What it reaches", [_metrics(task.metric, measured)]),
        *task.sections(encoded, found.logits, trained.names, measured),
    ]
    return write(history.name, page, options.out or options.run / "report")


def write(title: str, sections: Sequence[Section], out: Path) -> Path:
    """Write a page and its pictures into a directory, and return the page's path."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: no directory can be made there ({error}); name another") from None
    parts = [f"# {literal(title)}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [part if isinstance(part, str) else _drawn(part, out) for part in section.parts]
    page = out / PAGE
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _drawn(picture: Picture, out: Path) -> str:
    """Draw a picture and return the link to it."""
    picture.draw(out / f"{picture.name}.png")
    return f"![{literal(picture.shows)}]({picture.name}.png)"


def _facts(trained: Trained, history: History, source: str, encoded: Encoded) -> str:
    """Return what the run is, and what is looked at here, as a table."""
    cfg, record = trained.cfg, trained.record
    task, sizes = cfg.task, record.get("records", {})  # runs from before it was recorded have none
    step = trained.number
    rows = [
        ("Task", literal(_task(task))),
        ("Started from", literal(record.get("init_from", cfg.init_from))),
        ("Parameters", count(record.get("parameters"))),
        ("Outputs", clipped(", ".join(trained.names), LABELS_ROOM)),
        ("Training set", _set(task.train, sizes.get("training"))),
        ("Validation set", _set(task.validation, sizes.get("validation"))),
        ("Epochs, learning rate", f"{cfg.train.epochs:g}, {cfg.optim.lr:g}"),
        ("Best step", f"{record['best_step']:,}" if record.get("best_step") is not None else UNKNOWN),
        ("Step looked at", f"{step:,} of {history.train[-1]['step']:,.0f}" if history.train else f"{step:,}"),
        ("Data looked at", f"{_set(source, len(encoded.records))}, {len(encoded.examples):,} sequences"),
    ]
    return table(["", ""], [list(row) for row in rows])


def _metrics(chosen: str, measured: Mapping[str, float]) -> str:
    """Return the metrics as a table; those of single types of entities have one of their own."""
    values = {name: value for name, value in measured.items() if "/" not in name}
    rows = [[f"**{name}**" if name == chosen else name, value_text(value)] for name, value in values.items()]
    return table(["metric", "value"], rows)


def _task(task: TaskConfig) -> str:
    """Return the name of a task, and of the problem that it poses if it knows several."""
    name, problem = choices()[type(task)][1], getattr(task, "problem", None) or getattr(task, "scheme", None)
    return f"{name}, {problem}" if problem else name


def _set(source: str, size: int | None) -> str:
    return literal(source) if size is None else f"{literal(source)}, {size:,} records"


if __name__ == "__main__":
    sys.exit(main())
