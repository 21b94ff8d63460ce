"""Reading a run directory: its metrics, its configuration, its `run.json`.

Holds no page and no drawing; those are in `__main__` and `curves`. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pretrain.errors import ConfigError
from pretrain.errors.redaction import redacted
from pretrain.tracking.base import Record
from pretrain.tracking.jsonl import METRICS_FILE
from pretrain.train.run_dir import RECORD_FILE, read_config, read_record

Row = dict[str, float]
"""The known numbers of one record."""

ABSENT = object()  # the value of a setting in a run that has no such setting


@dataclass(kw_only=True)
class History:
    """What a run directory holds; the run may be finished, still training or killed."""

    name: str
    path: Path
    train: list[Row] = field(default_factory=list)  # training records, by step
    evaluation: list[Row] = field(default_factory=list)  # held-out records, by step
    config: dict[str, object] = field(default_factory=dict)  # dotted key -> value or choice; empty without config.yaml
    facts: dict[str, Any] = field(default_factory=dict)  # run.json; empty without one


def load(path: Path) -> History:
    """Read a run directory. Raises `ConfigError` if there is no run or one of its files cannot be read."""
    metrics = path / METRICS_FILE
    if not metrics.is_file():
        raise ConfigError(f"{metrics}: not there; name the directory of a run that has logged at least one line")
    facts = facts_of(path)
    run = History(name=facts.get("name", path.resolve().name), path=path, config=_config(path), facts=facts)
    for record in records(metrics):
        row = {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
        (run.train if record["split"] == "train" else run.evaluation).append(row)
    if not run.train and not run.evaluation:
        raise ConfigError(f"{metrics}: has no whole line yet; wait for the run's first log step")
    return run


def facts_of(run: Path) -> dict[str, Any]:
    """Return a run's `run.json`, nothing without one. Raises `ConfigError` for one that cannot be read."""
    return read_record(run) if (run / RECORD_FILE).is_file() else {}


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a metrics.jsonl as the run logged them. Raises `ConfigError` for any other line."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return  # the run is writing it, or was killed while writing
        try:
            record = json.loads(line)
            values = {key: _number(value) for key, value in record.items() if key != "split"}
            record = {"step": values["step"], "split": record["split"], **values}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}:{number}: not a record ({error}); mend or delete the line") from None
        yield record


def differing(runs: Sequence[History]) -> dict[str, list[object]]:
    """Return the settings in which runs differ, `run.*` aside: dotted key -> its value in each run, or `ABSENT`."""
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith("run."))
    settings = {key: [run.config.get(key, ABSENT) for run in runs] for key in keys}
    return {key: values for key, values in settings.items() if any(value != values[0] for value in values)}


def median_of(rows: Sequence[Row], key: str) -> float | None:
    """Return the median of a value over the rows that have it, None if none has."""
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def _number(value: object) -> int | float | None:
    """Return a number of a record; numbers that are not finite are strings in the file."""
    if not isinstance(value, int | float | str | None):
        raise TypeError(f"{value!r} is no number")
    return float(value) if isinstance(value, str) else value


def _config(run: Path) -> dict[str, object]:
    """Return a run's settings by dotted key, with the choice of each group under the group's key."""
    config = redacted(read_config(run))
    chosen = [entry for entry in config.pop("defaults", []) if isinstance(entry, dict)]
    return {key.rpartition("@")[2]: name for entry in chosen for key, name in entry.items()} | config
