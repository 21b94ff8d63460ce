"""`python -m launch.table RUN...`: where runs differ and what they reached, one line a run and one a group of seeds.

Holds the table; runs are read in `pretrain.report.history`, pages with figures are written by `pretrain.report`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.commands import command
from pretrain.errors import ConfigError
from pretrain.report.history import ABSENT, History, Row, differing, facts_of, load
from pretrain.settings.options import CommandParser
from pretrain.tracking.console import LEFT_OUT
from pretrain.train.run_dir.record import warn_of_changed_config

UNKNOWN = "-"
LOSS = "train loss"  # the header of a column
# Where, when, how fast and by which setting a run was measured: no results.
NOT_RESULTS = {"step", "tokens", "time", "tokens_per_s", "lr", "grad_norm", "mfu", "step_s", "skipped"}
NOT_RESULTS |= LEFT_OUT  # nor what the lines of a run leave out


def table_of(runs: Sequence[Path], codes: Sequence[int] = ()) -> str:
    """Return a table: the settings in which the runs differ, their exit code, steps, training and held-out metrics.

    Held-out metrics are those that `reached` returns. Below the runs, each group that differs in `seed` alone has a
    line with mean and standard deviation over those of its runs that ended with 0. A run that ended before it trained
    has a line, too, with what is known of it. `codes` are the exit codes of the first runs; they override `run.json`,
    which a refused start does not write.
    """
    histories = [_load(run) for run in runs]
    for history, code in zip(histories, codes, strict=False):
        history.facts["exit"] = code
    settings = differing(histories)
    swept = [key for key, held in settings.items() if len({str(value) for value in held if value is not ABSENT}) > 1]
    measured = dict.fromkeys(key for each in histories for key in _measured(each) if key != LOSS)
    header = ["run", *swept, "exit", "steps", LOSS, *measured]
    lines = [_line(each) for each in histories] + [_line_of_seeds(group) for group in seed_groups(histories)]
    cells = [header, *([line.get(key, UNKNOWN) for key in header] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def reached(history: History) -> Row:
    """Return the held-out metrics of a run: at its best step where fine-tuning recorded one, else the last ones."""
    best = history.facts.get("best_step")
    rows = [row for row in history.evaluation if best is None or row["step"] == best]
    last = rows[-1] if rows else {}
    return {key: value for key, value in last.items() if key not in NOT_RESULTS and "memory" not in key}


def seed_groups(histories: Sequence[History]) -> list[list[History]]:
    """Return the groups of two or more runs whose configurations differ in `seed` alone, and in `run.*`."""
    groups: dict[str, dict[object, History]] = {}
    for history in histories:
        if "seed" in history.config:
            others = {k: value for k, value in history.config.items() if k != "seed" and not k.startswith("run.")}
            groups.setdefault(str(others), {})[history.config["seed"]] = history
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def mean_and_deviation(values: Sequence[float], of: int) -> str:
    """Return mean and sample standard deviation (n - 1), and how many of the runs have a value if some have none.

    The deviation of one value, and of values that are not all finite, is nan.
    """
    known = len(values) > 1 and all(map(math.isfinite, values))
    deviation = statistics.stdev(values) if known else math.nan
    text = f"{statistics.mean(values):.4f} ± {deviation:.4f}"
    return text if len(values) == of else f"{text} ({len(values)} of {of})"


def _load(run: Path) -> History:
    warn_of_changed_config(run)
    try:
        return load(run)
    except ConfigError:  # no metrics yet
        return History(name=run.name, path=run, facts=facts_of(run))


def _measured(history: History) -> Row:
    """Return the last training loss of a run and what it reached on held-out data, by the header of their column."""
    last = history.train[-1] if history.train else {}
    held_out = {f"held-out {key}" if key == "loss" else key: value for key, value in reached(history).items()}
    return {LOSS: last["loss"], **held_out} if "loss" in last else held_out


def _line(history: History) -> dict[str, str]:
    """Return the cells of a run by the header of their column, its settings among them."""
    code = history.facts.get("exit")
    steps = max((row["step"] for row in [*history.train[-1:], *history.evaluation[-1:]]), default=0)
    return {
        **{key: str(value) for key, value in history.config.items()},
        "run": history.path.name,
        "exit": UNKNOWN if code is None else str(code),
        "steps": f"{steps:.0f}",
        **{key: f"{value:.4f}" for key, value in _measured(history).items()},
    }


def _line_of_seeds(group: Sequence[History]) -> dict[str, str]:
    finished = [_measured(history) for history in group if history.facts.get("exit") == 0]
    measured = dict.fromkeys(key for row in finished for key in row)
    return {
        **{key: str(value) for key, value in group[0].config.items()},
        "run": f"mean of {len(group)} seeds",
        "seed": ", ".join(str(history.config["seed"]) for history in group),
        **{key: mean_and_deviation([row[key] for row in finished if key in row], len(group)) for key in measured},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), lambda options: table_of(options.runs), arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="python -m launch.table",
        description="What runs reached, one line a run.",
        example="python -m launch.table runs/demo-*",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, there or still to come")
    return parser


if __name__ == "__main__":
    sys.exit(main())
