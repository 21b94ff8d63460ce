"""Reading a run directory: its metrics, its configuration, its `run.json`.

Holds no page and no drawing; those are in `__main__` and `curves`. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.tracking.base import Record
from pretrain.tracking.jsonl import METRICS_FILE
from pretrain.train.run_dir import read_config

Row = dict[str, float]
"""The known numbers of one record."""


@dataclass(kw_only=True)
class History:
    """What a run directory holds; the run may be finished, still training or killed."""

    name: str
    path: Path
    train: list[Row]  # training records, by step
    evaluation: list[Row]  # held-out records, by step
    config: dict[str, object] = field(default_factory=dict)  # dotted key -> value or choice; empty without config.yaml
    facts: dict[str, object] = field(default_factory=dict)  # run.json; empty without one


def load(path: Path) -> History:
    """Read a run directory. Raises `ConfigError` if there is no run or one of its files cannot be read."""
    metrics = path / METRICS_FILE
    if not metrics.is_file():
        raise ConfigError(f"{metrics}: not there; name the directory of a run that has logged at least one line")
    train: list[Row] = []
    evaluation: list[Row] = []
    for split, row in _rows(metrics):
        (train if split == "train" else evaluation).append(row)
    if not train and not evaluation:
        raise ConfigError(f"{metrics}: has no whole line yet; wait for the run's first log step")
    facts = _facts(path / "run.json")
    name = facts.get("name")
    return History(
        name=name if isinstance(name, str) else path.resolve().name,
        path=path,
        train=train,
        evaluation=evaluation,
        config=_config(path),
        facts=facts,
    )


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


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    for record in records(path):
        yield (
            str(record["split"]),
            {key: float(value) for key, value in record.items() if isinstance(value, int | float)},
        )


def _number(value: object) -> int | float | None:
    """Return a number of a record; numbers that are not finite are strings in the file."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return float(value)
    raise TypeError(f"{value!r} is no number")


def _config(run: Path) -> dict[str, object]:
    """Return a run's settings by dotted key, with the choice of each group under the group's key."""
    config = read_config(run)
    chosen = [entry for entry in config.pop("defaults", []) if isinstance(entry, dict)]
    return {key.rpartition("@")[2]: name for entry in chosen for key, name in entry.items()} | config


def _facts(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); mend or delete it") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"{path}: holds no JSON object; mend or delete it")
    return facts
