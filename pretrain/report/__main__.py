"""`python -m pretrain.report RUN [RUN ...]`: curves and a Markdown page that compare runs.

Holds the command and the page; `history` reads the runs, `curves` draws them, and `wandb_sync` sends them to W&B if
`--sync` is given. Free of torch.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median

from pretrain.errors import command
from pretrain.report.baselines import baselines
from pretrain.report.history import History, Row, load
from pretrain.report.markdown import UNKNOWN, count, number, percent, table
from pretrain.report.wandb_sync import add_options, sync
from pretrain.train.run_dir import check_written_by

FIGURE = "curves.png"
PAGE = "report.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.report", description="Curves and a page comparing runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the first run)")
    add_options(parser)
    return command(parser, _report, arguments)


def _report(options: argparse.Namespace) -> object:
    """Write the page and return its path, or send the runs to W&B and return where they are."""
    if options.sync:
        return "\n".join(sync(run, "pretrain", options.project) for run in options.runs)
    return write(options.runs, options.out or options.runs[0] / "report")


def write(paths: Sequence[Path], out: Path) -> Path:
    """Write `curves.png` and `report.md` of the runs into `out` and return the page's path.

    Raises `ConfigError` for a directory that is not a run of pretraining, or cannot be read.
    """
    from pretrain.report.curves import draw

    for path in paths:
        check_written_by("pretrain", path)
    runs = _distinct([load(path) for path in paths])
    for run in runs:
        _add_baselines(run)
    out.mkdir(parents=True, exist_ok=True)
    draw(runs, out / FIGURE)
    page = out / PAGE
    page.write_text(markdown(runs), encoding="utf-8")
    return page


def markdown(runs: Sequence[History]) -> str:
    """Return the page: the figure, the results, and where the configurations differ."""
    parts = [
        f"# {' and '.join(run.name for run in runs)}",
        f"![Loss, learning rate, gradient norm and throughput]({FIGURE})",
        "Where there are many points, the thick line is smoothed and the faint one is raw.",
        "## What was reached",
        table(["", *(run.name for run in runs)], _results(runs)),
        "Loss is in nats per target; held-out values are of the last evaluation unless marked. Bits per byte "
        "of the compressors are over the same held-out text. MFU counts model FLOPs against dense peaks (PaLM, "
        "arXiv 2204.02311, appendix B). Training time leaves out evaluations and checkpoints.",
    ]
    if len(runs) > 1:
        parts += ["## Where the configurations differ", _differences(runs)]
    return "\n\n".join(parts) + "\n"


def _results(runs: Sequence[History]) -> list[list[str]]:
    rows: list[tuple[str, Callable[[History], str]]] = [
        ("Parameters", lambda run: count(run.facts.get("parameters"))),
        ("Steps", lambda run: f"{_last(run.train or run.evaluation, 'step'):,.0f}"),
        ("Tokens seen", lambda run: count(_last(run.train or run.evaluation, "tokens"))),
        ("Training loss, last line", lambda run: number(_last(run.train, "loss"))),
        ("Held-out loss", lambda run: number(_last(run.evaluation, "loss"))),
        ("Best held-out loss", _best),
        ("Perplexity", lambda run: number(_last(run.evaluation, "perplexity"), digits=2)),
        ("Accuracy", lambda run: percent(_last(run.evaluation, "accuracy"))),
        ("Loss on sentences", lambda run: number(_last(run.evaluation, "sentence_loss"))),
        ("Accuracy on sentences", lambda run: percent(_last(run.evaluation, "sentence_accuracy"))),
        ("Bits per byte", lambda run: number(_last(run.evaluation, "bits_per_byte"))),
        ("Bits per byte, first evaluation", lambda run: number(_first(run.evaluation, "bits_per_byte"))),
    ]
    for name in dict.fromkeys(name for run in runs for name in _baselines(run)):
        rows.append((f"Bits per byte, `{name}`", lambda run, name=name: number(_baselines(run).get(name))))
    rows += [
        ("Tokens per second, median", lambda run: number(_median(run.train, "tokens_per_s"), digits=0)),
        ("MFU, median", lambda run: percent(_median(run.train, "mfu"))),
        ("Memory, largest", lambda run: _bytes(run.train)),
        ("Skipped updates", lambda run: f"{sum(row.get('skipped', 0) for row in run.train):.0f}"),
        ("Training time", lambda run: _training_time(run.train)),
        ("Exit code", lambda run: str(run.facts["exit"]) if run.facts.get("exit") is not None else UNKNOWN),
    ]
    shown = [[title, *(show(run) for run in runs)] for title, show in rows]
    return [row for row in shown if any(cell != UNKNOWN for cell in row[1:])]


def _differences(runs: Sequence[History]) -> str:
    missing = [run.name for run in runs if not run.config]
    if missing:
        return f"Not compared: no config.yaml in {', '.join(missing)}."
    absent = object()
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith("run."))
    rows = []
    for key in keys:
        values = [run.config.get(key, absent) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([f"`{key}`", *(UNKNOWN if value is absent else f"`{value}`" for value in values)])
    return table(["key", *(run.name for run in runs)], rows) if rows else "Nowhere, apart from `run.*`."


def _distinct(runs: list[History]) -> list[History]:
    """Name runs by their paths where two have the same name."""
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.path)
    return runs


def _baselines(run: History) -> dict[str, float]:
    recorded = run.facts.get("baselines")
    return recorded if isinstance(recorded, dict) else {}


def _add_baselines(run: History) -> None:
    """Compress the held-out text if the run's corpora still exist."""
    corpora = run.facts.get("corpora")
    if isinstance(corpora, dict):
        run.facts["baselines"] = baselines([Path(path) for path in corpora.values()])


def _last(rows: list[Row], key: str) -> float | None:
    return rows[-1].get(key) if rows else None


def _first(rows: list[Row], key: str) -> float | None:
    return rows[0].get(key) if rows else None


def _median(rows: list[Row], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def _best(run: History) -> str:
    rows = [row for row in run.evaluation if math.isfinite(row.get("loss", math.nan))]
    if not rows:
        return UNKNOWN
    best = min(rows, key=lambda row: row["loss"])
    return f"{best['loss']:.4f} at step {best['step']:,.0f}"


def _training_time(rows: list[Row]) -> str:
    """Sum step times; each line counts for the steps since the line before."""
    seconds = previous = 0.0
    for row in rows:
        seconds += row.get("step_s", 0.0) * (row["step"] - previous)
        previous = row["step"]
    return str(timedelta(seconds=round(seconds))) if seconds else UNKNOWN


def _bytes(rows: list[Row]) -> str:
    held = [max(row.get("memory_bytes", 0), row.get("memory_peak_bytes", 0)) for row in rows]
    return f"{max(held) / 2**30:.2f} GiB" if any(held) else UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
