"""Sending a run to W&B after it ran: what `report --sync` does.

Holds the options and the work of `--sync`; `wandb_sink` turns records into rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError
from pretrain.files import read_json
from pretrain.report.history import load, records
from pretrain.tracking.jsonl import METRICS_FILE
from pretrain.tracking.redaction import redacted
from pretrain.tracking.wandb_sink import WandbConfig, WandbSink, quieten
from pretrain.train.run_dir import check_written_by, read_config, read_nested_config

OF_THE_RUN = ("project", "entity", "group", "tags", "init_timeout_s")  # fields of its tracker that a sync keeps


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a sync to the parser of a report."""
    parser.add_argument("--sync", action="store_true", help="send what the run recorded to W&B, instead of a page")
    parser.add_argument("--project", help="W&B project for --sync (default: the run's own tracker.project)")


def sync(run: Path, program: str, project: str | None = None) -> str:
    """Send what a run of `program` recorded to W&B, and return its address there.

    Sends metrics.jsonl, the configuration and, by reference, the saved checkpoints and the export in `RUN/export`, to
    the W&B run that the run itself mirrored to, if it did. Records that the server has are skipped, up to the last one
    that it knows of each split, so that a second sync adds nothing. With WANDB_MODE=offline no server can be asked:
    each sync writes a file with everything, and sending two of them with `wandb sync` gives every row twice.

    Waits until all is sent. Raises `ConfigError` for a directory that is no run, and if W&B does not start.
    """
    check_written_by(program, run)
    history = load(run)
    settings = _settings(run, project)
    checkpoints, export = _checkpoints(run), _about_export(run / "export")
    quieten()
    import wandb

    config = redacted({key: value for key, value in read_nested_config(run).items() if key != "defaults"})
    try:
        sink = WandbSink(settings, run, history.name, config, upload_timeout_s=0)
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{run}: W&B did not start ({reason}); check WANDB_BASE_URL and WANDB_API_KEY, or set WANDB_MODE=offline"
        ) from None
    for record in records(run / METRICS_FILE):
        if not sink.has(record):
            sink.log(record)
    place = sink.place
    for step, path, best in checkpoints:
        sink.saved(step, path, best)
    if export:
        sink.exported(run / "export", export)
    code = history.facts.get("exit")
    sink.close(code if isinstance(code, int) else 1)  # a run that was killed has none
    return place


def _settings(run: Path, project: str | None) -> WandbConfig:
    """Return the run's own W&B settings, or the defaults if it had another tracker."""
    values = read_config(run)
    kept: dict[str, Any] = {name: values[f"tracker.{name}"] for name in OF_THE_RUN if f"tracker.{name}" in values}
    settings = WandbConfig(**kept)
    return replace(settings, project=project) if project is not None else settings


def _about_export(export: Path) -> dict[str, Any] | None:
    """Return the record of an export, None if there is no export."""
    if not export.is_dir():
        return None
    from pretrain.hub.export_dir import EXPORT_RECORD  # it imports torch

    path = export / EXPORT_RECORD
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}); move it away if it is no export") from None


def _checkpoints(run: Path) -> list[tuple[int, Path, bool]]:
    """Return the steps on disk, oldest first, and which is the best."""
    from pretrain.checkpoint.commit import step_names, step_number
    from pretrain.checkpoint.load import load_state

    steps = [run / "checkpoints" / name for name in step_names(run / "checkpoints")]
    best = load_state(steps[-1]).get("best") if steps else None
    return [(step_number(step), step, best is not None and step_number(step) == best[0]) for step in steps]
