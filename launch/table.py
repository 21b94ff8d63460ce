"""`python -m launch.table RUN...`: where runs differ and what each of them reached, one line a run.

Holds the table; reading runs is `pretrain.report.history`'s, pages with figures are `pretrain.report`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.report.history import History, Row, load
from pretrain.train.run_dir import RECORD_FILE, read_record

UNKNOWN = "-"
NO_RESULT = {"step", "tokens", "tokens_per_s", "lr", "grad_norm", "mfu", "step_s", "skipped"}


def table_of(runs: Sequence[Path], codes: Sequence[int] = ()) -> str:
    """Return the settings that differ, then exit code, steps, training loss and what the last evaluation measured.

    A run that ended before it trained has a line, too, with what is known of it. `codes` are the exit codes of the
    first runs, where the caller knows better than their records: a refused start leaves none.
    """
    histories = [_load(run) for run in runs]
    for history, code in zip(histories, codes, strict=False):
        history.facts["exit"] = code
    known = dict.fromkeys(key for each in histories for key in each.config if not key.startswith("run."))
    keys = [key for key in known if len({str(each.config[key]) for each in histories if key in each.config}) > 1]
    measured = dict.fromkeys(key for each in histories for key in _last(each.evaluation))
    measures = [key for key in measured if key not in NO_RESULT and not key.startswith("memory")]
    header = ["run", *keys, "exit", "steps", "train loss", *(f"held-out {key}" for key in measures)]
    rows = [_row(each, keys, measures) for each in histories]
    columns = zip(header, *rows, strict=True)
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _load(run: Path) -> History:
    try:
        return load(run)
    except ConfigError:  # no metrics yet
        known = (run / RECORD_FILE).exists()
        return History(name=run.name, path=run, train=[], evaluation=[], facts=read_record(run) if known else {})


def _row(history: History, keys: Sequence[str], measures: Sequence[str]) -> list[str]:
    train, held_out, code = _last(history.train), _last(history.evaluation), history.facts.get("exit")
    steps = max(train.get("step", 0), held_out.get("step", 0))
    values = [train.get("loss"), *(held_out.get(key) for key in measures)]
    return [
        history.path.name,
        *(str(history.config.get(key, UNKNOWN)) for key in keys),
        UNKNOWN if code is None else str(code),
        f"{steps:.0f}",
        *(UNKNOWN if value is None else f"{value:.4f}" for value in values),
    ]


def _last(rows: Sequence[Row]) -> Row:
    return rows[-1] if rows else {}


def main() -> None:
    """Print the table of the runs that are named."""
    parser = argparse.ArgumentParser(prog="python -m launch.table", description="What runs reached, one line a run.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, there or still to come")
    print(table_of(parser.parse_args().runs))


if __name__ == "__main__":
    main()
