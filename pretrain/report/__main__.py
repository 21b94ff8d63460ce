"""`python -m pretrain.report RUN [RUN ...]`: curves and a Markdown page that compare runs.

Holds the command and the page; `history` reads the runs, `curves` draws them, and `wandb_sync` sends them to W&B if
`--sync` is given. Free of torch.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from pretrain.commands import command
from pretrain.files import replace_file
from pretrain.report.baselines import baselines
from pretrain.report.history import ABSENT, History, Row, differing, load, median_of, page_folder
from pretrain.report.markdown import UNKNOWN, count, number, percent, table
from pretrain.report.wandb_sync import add_options, sync
from pretrain.settings.options import CommandParser
from pretrain.train.run_dir import check_written_by

FIGURE = "curves.png"
PAGE = "report.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), _report, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="python -m pretrain.report",
        description="Curves and a page comparing runs.",
        example="python -m pretrain.report runs/demo",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the first run)")
    add_options(parser)
    return parser


def _report(options: argparse.Namespace) -> object:
    """Write the page and return its path, or send the runs to W&B and return where they are."""
    if options.sync:
        return "\n".join(sync(run, "pretrain", options.project) for run in options.runs)
    return write(options.runs, options.out)


def write(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write `curves.png` and `report.md` of the runs into `out`, or the first run, and return the page's path.

    Raises `ConfigError` for a directory that is not a run of pretraining, or cannot be read.
    """
    from pretrain.report.curves import draw

    for path in paths:
        check_written_by("pretrain", path)
    runs = [load(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.path)
    folder = page_folder(paths[0], out)
    draw(runs, folder / FIGURE)
    page = folder / PAGE
    replace_file(page, [markdown(runs).encode()])
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
    columns = [_reached(run) for run in runs]
    titles = dict.fromkeys(title for column in sorted(columns, key=len, reverse=True) for title in column)
    rows = [[title, *(column.get(title, UNKNOWN) for column in columns)] for title in titles]
    return [row for row in rows if any(cell != UNKNOWN for cell in row[1:])]


def _reached(run: History) -> dict[str, str]:
    """Return what the page says of a run: title of the row -> cell."""
    last, held_out = (rows[-1] if rows else {} for rows in (run.train, run.evaluation))
    code = run.facts.get("exit")
    compressors = baselines(Path(path) for path in run.facts.get("corpora", {}).values())
    return {
        "Parameters": count(run.facts.get("parameters")),
        "Steps": f"{(last or held_out)['step']:,.0f}",
        "Tokens seen": count((last or held_out).get("tokens")),
        "Training loss, last line": number(last.get("loss")),
        "Held-out loss": number(held_out.get("loss")),
        "Best held-out loss": _best(run),
        "Perplexity": number(held_out.get("perplexity"), digits=2),
        "Accuracy": percent(held_out.get("accuracy")),
        "Loss on sentences": number(held_out.get("sentence_loss")),
        "Accuracy on sentences": percent(held_out.get("sentence_accuracy")),
        "Bits per byte": number(held_out.get("bits_per_byte")),
        "Bits per byte, first evaluation": number(run.evaluation[0].get("bits_per_byte") if held_out else None),
        **{f"Bits per byte, `{name}`": number(value) for name, value in compressors.items()},
        "Tokens per second, median": number(median_of(run.train, "tokens_per_s"), digits=0),
        "MFU, median": percent(median_of(run.train, "mfu")),
        "Memory, largest": _bytes(run.train),
        "Skipped updates": f"{sum(row.get('skipped', 0) for row in run.train):.0f}",
        "Training time": _training_time(run.train),
        "Exit code": UNKNOWN if code is None else str(code),
    }


def _differences(runs: Sequence[History]) -> str:
    missing = [run.name for run in runs if not run.config]
    if missing:
        return f"Not compared: no config.yaml in {', '.join(missing)}."
    rows = [
        [f"`{key}`", *(UNKNOWN if value is ABSENT else f"`{value}`" for value in values)]
        for key, values in differing(runs).items()
    ]
    return table(["key", *(run.name for run in runs)], rows) if rows else "Nowhere, apart from `run.*`."


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
