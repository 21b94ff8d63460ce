"""Reading a run directory: its metrics, samples and configuration, its `run.json`, the steps it has saved.

Holds no page and no drawing; those are in `__main__` and `curves`. Free of torch.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypedDict

from pretrain.commands import INTERRUPTED
from pretrain.errors import CheckpointError, ConfigError, HeadwaterError, Preempted, check
from pretrain.errors.redaction import redacted
from pretrain.files import check_place, parsed, read_json, typed_as
from pretrain.tracking.base import Mark, Record
from pretrain.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, SKIPS_FILE, missing
from pretrain.train.profiling.operators import Found, tables_of
from pretrain.train.run_dir.base import CHECKPOINTS
from pretrain.train.run_dir.lock import LOCK_FILE, is_locked
from pretrain.train.run_dir.record import RECORD_FILE, read_config, read_record

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)


class _Known(TypedDict):
    step: int
    split: str


class _Saved(TypedDict):
    step: int
    metrics: Mark | None


class SampleRecord(TypedDict):
    """A prompt that the model continued at an evaluation: a line of samples.jsonl."""

    step: int
    prompt: str
    continuation: str


class SkipRecord(TypedDict):
    """An optimizer step whose update was skipped: a line of skips.jsonl."""

    step: int
    data_step: int  # the batch that it took, in the order of the data, from 0
    grad_norm: Any  # a number; one that is not finite is a string
    cause: str


Row = dict[str, float]
"""The known numbers of one record."""

REPORT = "report"  # directory in a run
_STEP = re.compile(r"step-\d{8}")  # as `checkpoint.commit` names them, which imports torch
MEANINGS = {kind.exit_code: (kind.__doc__ or "").rstrip(".") for kind in HeadwaterError.__subclasses__()}
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
    samples: list[SampleRecord] = field(default_factory=list)  # by step
    saved: list[int] = field(default_factory=list)  # steps whose checkpoints are on disk
    skips: list[SkipRecord] = field(default_factory=list)  # by step
    profiles: list[Found] = field(default_factory=list)  # the costliest operators of profiled steps, by step and rank
    notes: list[str] = field(default_factory=list)  # what is not as it should be

    @property
    def last_step(self) -> int:
        """The step of the last record, 0 before the first."""
        return int(max((rows[-1]["step"] for rows in (self.train, self.evaluation) if rows), default=0))

    @property
    def clock(self) -> tuple[list[float], list[float]] | None:
        """Steps, and the seconds of training up to them; None if they were not measured.

        A record counts for the steps since the one before.
        """
        steps, seconds = [0.0], [0.0]
        for row in self.train:
            step_s = row.get("step_s", 0.0)
            seconds.append(seconds[-1] + (step_s * (row["step"] - steps[-1]) if math.isfinite(step_s) else 0.0))
            steps.append(row["step"])
        return (steps, seconds) if seconds[-1] else None

    def until(self, step: int) -> History:
        """Return the history as it was at a step: without what came later."""
        best = self.facts.get("best_step")
        return replace(
            self,
            train=[row for row in self.train if row["step"] <= step],
            evaluation=[row for row in self.evaluation if row["step"] <= step],
            samples=[sample for sample in self.samples if sample["step"] <= step],
            skips=[skip for skip in self.skips if skip["step"] <= step],
            saved=[saved for saved in self.saved if saved <= step],
            profiles=[found for found in self.profiles if found.last <= step],
            facts={**self.facts, "best_step": best if best is not None and best <= step else None},
        )


def load(path: Path) -> History:
    """Read a run directory. Raises `ConfigError` if there is no run or one of its files cannot be read.

    Warns of records that the run had logged when it saved its newest step, and that are not there any more.
    """
    notes, logged = _losses(path), _logged(path)
    facts = facts_of(path)
    if "name" not in facts:
        notes.append(f"{path / RECORD_FILE} says of no run how it ended and what it trained")
    saved = saved_steps(path)
    if gone := sorted({_step_number(name) for name in facts.get("steps", {}) if _STEP.fullmatch(name)} - {*saved}):
        notes.append(f"{path / CHECKPOINTS}: no step {', '.join(map(str, gone))}, which the run had saved")
    for note in notes:
        log.warning("%s", note)
    run = History(
        name=facts.get("name", path.resolve().name), path=path, config=_config(path), facts=facts, saved=saved
    )
    run.profiles = tables_of(path)
    run.notes = [*notes, *facts.get("notes", [])]
    for record in logged:
        row = {key: float(value) for key, value in record.items() if isinstance(value, int | float)}
        (run.train if record["split"] == "train" else run.evaluation).append(row)
    if (path / SAMPLES_FILE).is_file():
        run.samples = [sample for _, sample in _lines(path / SAMPLES_FILE, SampleRecord)]
    if (path / SKIPS_FILE).is_file():
        run.skips = [skip for _, skip in _lines(path / SKIPS_FILE, SkipRecord)]
    return run


def history(run: str | Path) -> DataFrame:
    """Return the records of a run, of pretraining or of fine-tuning, as a table of one row each, in order.

    The columns are the keys of metrics.jsonl: `step`, `split` ("train" or "validation"), `loss` and so on. What a
    record lacks is NaN. Raises `ConfigError` as `load` does.
    """
    from pandas import DataFrame

    for loss in _losses(Path(run)):
        log.warning("%s", loss)
    rows = _logged(Path(run))
    return DataFrame([{key: math.nan if value is None else value for key, value in row.items()} for row in rows])


def _logged(run: Path) -> list[Record]:
    """Return the records of a run, at least one. Raises `ConfigError`."""
    metrics = run / METRICS_FILE
    if not metrics.is_file():
        if of := facts_of(run).get("average"):
            raise ConfigError(f"{run}: has no curves, it is {of}; python -m pretrain.evaluate {run} measures it")
        raise ConfigError(f"{metrics}: not there; name the directory of a run that has logged at least one line")
    if not (logged := list(records(metrics))):
        raise ConfigError(f"{metrics}: has no whole line yet; wait for the run's first log step")
    return logged


def saved_steps(run: Path) -> list[int]:
    """Return the steps whose checkpoints are on disk, oldest first; whether they are whole is for others to say."""
    names = [path.parent.name for path in run.glob(f"{CHECKPOINTS}/step-*/manifest.json")]
    return sorted(_step_number(name) for name in names if _STEP.fullmatch(name))


def _step_number(name: str) -> int:
    return int(name.removeprefix("step-"))


def outcome(run: Path, code: int | None) -> tuple[str, str]:
    """Return the state of a run whose record has this exit code, and the reason where there is one."""
    if is_locked(run):
        return "running", ""
    if code is None:
        lock = run / LOCK_FILE
        holder = lock.read_text(encoding="utf-8", errors="replace").strip() if lock.is_file() else "started"
        return "killed", f"was {holder}, and wrote no exit code"
    known = {0: "done", Preempted.exit_code: "preempted", INTERRUPTED: "interrupted"}
    return (known[code], "") if code in known else ("failed", MEANINGS.get(code, "A bug; its output has the traceback"))


def until(runs: Sequence[History], step: int) -> list[History]:
    """Return histories as they were at a step. Raises `ConfigError` if one had not begun, or none went as far."""
    first = max(min(rows[0]["step"] for rows in (run.train, run.evaluation) if rows) for run in runs)
    last = max(run.last_step for run in runs)
    check(first <= step <= last, "--step", step, f"there are records of steps {first:.0f} to {last}; name one of these")
    return [run.until(step) for run in runs]


def facts_of(run: Path) -> dict[str, Any]:
    """Return a run's `run.json`, nothing without one. Raises `ConfigError` for one that cannot be read."""
    return read_record(run) if os.path.lexists(run / RECORD_FILE) else {}


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a metrics.jsonl as the run logged them. Raises `ConfigError` for any other line."""
    for number, record in _lines(path, _Known):
        try:
            values = {key: _number(value) for key, value in record.items() if key != "split"}
        except (ValueError, TypeError, OverflowError) as error:
            raise _unreadable(path, number, error) from None
        yield {"step": values["step"], "split": record["split"], **values}


def _lines(path: Path, kind: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and content of the whole lines of a file of JSON objects, each of a kind."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return  # the run is writing it, or was killed while writing
        try:
            yield number, typed_as(kind, parsed(line))
        except ValueError as error:
            raise _unreadable(path, number, error) from None


def _unreadable(path: Path, number: int, error: Exception) -> ConfigError:
    return ConfigError(f"{path}:{number}: not a record ({error}); mend or delete the line")


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


def differing(runs: Sequence[History]) -> dict[str, list[object]]:
    """Return the settings in which runs differ, `run.*` aside: dotted key -> its value in each run, or `ABSENT`."""
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith("run."))
    settings = {key: [run.config.get(key, ABSENT) for run in runs] for key in keys}
    return {key: values for key, values in settings.items() if any(value != values[0] for value in values)}


def median_of(rows: Sequence[Row], key: str) -> float | None:
    """Return the median of a value over the rows that have it, None if none has."""
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def _losses(run: Path) -> list[str]:
    """Say what the run had logged when it saved its newest step, and is not there any more."""
    for file in sorted(run.glob(f"{CHECKPOINTS}/step-*/state.json"))[-1:]:
        with suppress(OSError, ValueError, CheckpointError):  # of an older version, or damaged: of that others tell
            saved = read_json(file, _Saved)
            if saved["metrics"] and (lost := missing(run / METRICS_FILE, saved["step"], saved["metrics"])):
                return [lost]
    return []


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
