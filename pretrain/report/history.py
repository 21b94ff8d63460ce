"""Reading a run directory: its metrics, its configuration, its `run.json`.

Holds no page and no drawing; those are in `__main__` and `curves`. Free of torch.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypedDict

from pretrain.errors import CheckpointError, ConfigError
from pretrain.errors.redaction import redacted
from pretrain.files import check_place, parsed, read_json, replace_file, typed_as
from pretrain.tracking.base import Mark, Record
from pretrain.tracking.jsonl import METRICS_FILE, missing
from pretrain.train.run_dir import CHECKPOINTS, RECORD_FILE, read_config, read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

log = logging.getLogger(__name__)


class _Known(TypedDict):
    step: int
    split: str


class _Saved(TypedDict):
    step: int
    metrics: Mark | None


Row = dict[str, float]
"""The known numbers of one record."""

REPORT = "report"  # directory in a run
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
    """Read a run directory. Raises `ConfigError` if there is no run or one of its files cannot be read.

    Warns of records that the run had logged when it saved its newest step, and that are not there any more.
    """
    logged = _logged(path)
    facts = facts_of(path)
    if "name" not in facts:
        log.warning("%s says of no run how it ended and what it trained", path / RECORD_FILE)
    run = History(name=facts.get("name", path.resolve().name), path=path, config=_config(path), facts=facts)
    for record in logged:
        row = {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
        (run.train if record["split"] == "train" else run.evaluation).append(row)
    return run


def history(run: str | Path) -> DataFrame:
    """Return the records of a run, of pretraining or of fine-tuning, as a table of one row each, in order.

    The columns are the keys of metrics.jsonl: `step`, `split` ("train" or "validation"), `loss` and so on. What a
    record lacks is NaN. Raises `ConfigError` as `load` does.
    """
    from pandas import DataFrame

    rows = _logged(Path(run))
    return DataFrame([{key: math.nan if value is None else value for key, value in row.items()} for row in rows])


def _logged(run: Path) -> list[Record]:
    """Return the records of a run, at least one. Raises `ConfigError`; warns of lines that are gone."""
    metrics = run / METRICS_FILE
    _warn_of_loss(run)
    if not metrics.is_file():
        raise ConfigError(f"{metrics}: not there; name the directory of a run that has logged at least one line")
    if not (logged := list(records(metrics))):
        raise ConfigError(f"{metrics}: has no whole line yet; wait for the run's first log step")
    return logged


def facts_of(run: Path) -> dict[str, Any]:
    """Return a run's `run.json`, nothing without one. Raises `ConfigError` for one that cannot be read."""
    return read_record(run) if os.path.lexists(run / RECORD_FILE) else {}


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a metrics.jsonl as the run logged them. Raises `ConfigError` for any other line."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return  # the run is writing it, or was killed while writing
        try:
            record = typed_as(_Known, parsed(line))
            values = {key: _number(value) for key, value in record.items() if key != "split"}
            record = {"step": values["step"], "split": record["split"], **values}
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"{path}:{number}: not a record ({error}); mend or delete the line") from None
        yield record


def page_folder(run: Path, out: Path | None) -> Path:
    """Make and return the directory of a page: `out`, or `report/` in the run. Raises `ConfigError` if none can be."""
    try:
        check_place(run, folders=() if out else (REPORT,))
        out = out or run / REPORT
        out.mkdir(parents=True, exist_ok=True)
        return out
    except OSError as error:
        raise ConfigError(
            f"--out {out or run / REPORT}: no directory can be made there ({error}); name another"
        ) from None


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a link in its place is replaced, not followed."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    replace_file(path, [image.getvalue()])


def differing(runs: Sequence[History]) -> dict[str, list[object]]:
    """Return the settings in which runs differ, `run.*` aside: dotted key -> its value in each run, or `ABSENT`."""
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith("run."))
    settings = {key: [run.config.get(key, ABSENT) for run in runs] for key in keys}
    return {key: values for key, values in settings.items() if any(value != values[0] for value in values)}


def median_of(rows: Sequence[Row], key: str) -> float | None:
    """Return the median of a value over the rows that have it, None if none has."""
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def _warn_of_loss(run: Path) -> None:
    for file in sorted(run.glob(f"{CHECKPOINTS}/step-*/state.json"))[-1:]:
        with suppress(OSError, ValueError, CheckpointError):  # of an older version, or damaged: of that others tell
            saved = read_json(file, _Saved)
            if saved["metrics"] and (lost := missing(run / METRICS_FILE, saved["step"], saved["metrics"])):
                log.warning("%s", lost)


def _number(value: object) -> int | float | None:
    """Return a number of a record; numbers that are not finite are strings in the file."""
    if not isinstance(value, int | float | str | None):
        raise TypeError(f"{value!r} is no number")
    if isinstance(value, int) and float(value) == value:
        return value
    return None if value is None else float(value)


def _config(run: Path) -> dict[str, object]:
    """Return a run's settings by dotted key, with the choice of each group under the group's key."""
    config = redacted(read_config(run))
    chosen = [entry for entry in config.pop("defaults", []) if isinstance(entry, dict)]
    return {key.rpartition("@")[2]: name for entry in chosen for key, name in entry.items()} | config
