"""Reading a run directory back: its records, its configuration, the facts about it.

Holds no judgement and no drawing; `report` and `curves` do those. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.rundir import read_config
from pretrain.tracking.jsonl import METRICS_FILE

Row = dict[str, float]
"""The known numbers of one record."""


@dataclass(kw_only=True)
class History:
    """What a run directory tells; a run that still trains or that was killed is as good as a finished one."""

    name: str
    path: Path
    train: list[Row]  # training records, by step
    evaluation: list[Row]  # held-out records, by step
    config: dict[str, object] = field(default_factory=dict)  # dotted key -> value; empty without config.yaml
    facts: dict[str, object] = field(default_factory=dict)  # run.json; empty without one


def load(path: Path) -> History:
    """Read a run directory. Raises `ConfigError` where there is no run or a file of it cannot be read."""
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
        config=read_config(path),
        facts=facts,
    )


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return  # the run is writing it, or was killed while it did
        try:
            record = json.loads(line)
            split = record.pop("split")
            # Non-finite numbers are strings in the file: float reads both.
            row = {key: float(value) for key, value in record.items() if value is not None}
            row["step"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}:{number}: not a record ({error}); mend or delete the line") from None
        yield split, row


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
