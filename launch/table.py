"""`python -m launch.table RUN...`: where runs differ and what they reached, one line a run and one a group of seeds.

Holds the table; runs are read in `pretrain.report.history`, pages with figures are written by `pretrain.report`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import ConfigError, command
from pretrain.report.history import History, Row, load
from pretrain.train.run_dir import RECORD_FILE, read_record

UNKNOWN = "-"
# Where, when, how fast and by which setting a run was measured: no results.
NOT_RESULTS = {"step", "tokens", "time", "tokens_per_s", "lr", "grad_norm", "mfu", "step_s", "skipped"}
NOT_RESULTS |= {"no_answer_threshold"}


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
    known = dict.fromkeys(key for each in histories for key in each.config if not key.startswith("run."))
    keys = [key for key in known if len({str(each.config[key]) for each in histories if key in each.config}) > 1]
    measured = dict.fromkeys(key for each in histories for key in reached(each))
    header = ["run", *keys, "exit", "steps", "train loss", *(f"held-out {key}" for key in measured)]
    rows = [_row(each, keys, list(measured)) for each in histories]
    rows += [_seeds_row(group, keys, list(measured)) for group in seed_groups(histories)]
    columns = zip(header, *rows, strict=True)
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def reached(history: History) -> Row:
    """Return the held-out metrics of a run: at its best step where fine-tuning recorded one, else the last ones."""
    best = history.facts.get("best_step")
    rows = [row for row in history.evaluation if best is None or row["step"] == best]
    return {key: value for key, value in _last(rows).items() if key not in NOT_RESULTS and "memory" not in key}


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
    if not values:
        return UNKNOWN
    known = len(values) > 1 and all(map(math.isfinite, values))
    deviation = statistics.stdev(values) if known else math.nan
    text = f"{statistics.mean(values):.4f} ± {deviation:.4f}"
    return text if len(values) == of else f"{text} ({len(values)} of {of})"


def _load(run: Path) -> History:
    try:
        return load(run)
    except ConfigError:  # no metrics yet
        known = (run / RECORD_FILE).exists()
        return History(name=run.name, path=run, train=[], evaluation=[], facts=read_record(run) if known else {})


def _row(history: History, keys: Sequence[str], measures: Sequence[str]) -> list[str]:
    train, held_out, code = _last(history.train), reached(history), history.facts.get("exit")
    steps = max(train.get("step", 0), _last(history.evaluation).get("step", 0))
    values = [train.get("loss"), *(held_out.get(key) for key in measures)]
    return [
        history.path.name,
        *(str(history.config.get(key, UNKNOWN)) for key in keys),
        UNKNOWN if code is None else str(code),
        f"{steps:.0f}",
        *(UNKNOWN if value is None else f"{value:.4f}" for value in values),
    ]


def _seeds_row(group: Sequence[History], keys: Sequence[str], measures: Sequence[str]) -> list[str]:
    finished = [history for history in group if history.facts.get("exit") == 0]
    losses = [row["loss"] for row in map(_last, (history.train for history in finished)) if "loss" in row]
    columns = [[row[key] for row in map(reached, finished) if key in row] for key in measures]
    seeds = ", ".join(str(history.config["seed"]) for history in group)
    return [
        f"mean of {len(group)} seeds",
        *(seeds if key == "seed" else str(group[0].config.get(key, UNKNOWN)) for key in keys),
        *(UNKNOWN, UNKNOWN),
        *(mean_and_deviation(values, len(group)) for values in [losses, *columns]),
    ]


def _last(rows: Sequence[Row]) -> Row:
    return rows[-1] if rows else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.table", description="What runs reached, one line a run.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, there or still to come")
    return command(parser, lambda options: table_of(options.runs), arguments)


if __name__ == "__main__":
    sys.exit(main())
