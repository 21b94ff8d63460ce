"""Sending a run to W&B after it ran: what `report --sync` does.

Holds the options and the work of `--sync`; `wandb_sink` turns records into rows.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError, HeadwaterError, check
from pretrain.errors.redaction import redacted
from pretrain.files import read_json
from pretrain.registry import rebuilt
from pretrain.report.history import load, records
from pretrain.settings.options import CommandParser
from pretrain.tracking.base import Sample
from pretrain.tracking.jsonl import METRICS_FILE
from pretrain.tracking.wandb_sink import WandbConfig, WandbMode, WandbSink, quieten
from pretrain.train.run_dir.record import CONFIG_FILE, check_written_by, read_config, read_nested_config

OF_THE_RUN = ("project", "entity", "group", "tags", "init_timeout_s")  # fields of its tracker that a sync keeps


def add_options(parser: CommandParser) -> None:
    """Add the options of a sync to the parser of a report."""
    parser.add_argument("--sync", action="store_true", help="send what the run recorded to W&B, instead of a page")
    parser.add_argument("--project", help="W&B project for --sync (default: the run's own tracker.project)")


def check_nothing_else(options: Namespace) -> None:
    """Raise `ConfigError` if a sync is asked for together with what is about a page."""
    for name in ("source", "step", "out"):
        value = getattr(options, name, None)
        check(
            value is None,
            f"--{name}".replace("--source", "FILE"),
            value,
            "is about a page; --sync sends the whole run: leave it out",
        )


def sync(run: Path, program: str, project: str | None = None) -> str:
    """Send what a run of `program` recorded to W&B, and return its address there.

    Sends metrics.jsonl, the configuration and, by reference, the saved checkpoints and the export in `RUN/export`, to
    the W&B run that the run itself mirrored to, if it did. Records that the server has are skipped, up to the last one
    that it knows of each split, so that a second sync adds nothing. With WANDB_MODE=offline no server can be asked:
    each sync writes a file with everything, and sending two of them with `wandb sync` gives every row twice.

    Waits until all is sent. Raises `ConfigError` for a directory that is no run, for what W&B would refuse, and if W&B
    does not start or fails.
    """
    check_written_by(program, run)
    mode = os.environ.get("WANDB_MODE")
    check(mode != WandbMode.disabled, "WANDB_MODE", mode, "nothing would be sent; unset it, or set offline")
    history = load(run)
    config = redacted({key: value for key, value in read_nested_config(run).items() if key != "defaults"})
    settings = _settings(run, project)
    settings.check_run(history.name, config)
    checkpoints, export = _checkpoints(run), _about_export(run / "export")
    samples: dict[int, list[Sample]] = {}  # of each step
    for each in history.samples:
        samples.setdefault(each["step"], []).append(Sample(each["prompt"], each["continuation"]))
    quieten()
    rule = "check WANDB_BASE_URL and WANDB_API_KEY, or set WANDB_MODE=offline"
    with _failing(f"{run}: W&B did not start", rule):
        sink = WandbSink(settings, run, history.name, config, upload_timeout_s=0)
    code = history.facts.get("exit")
    with _failing(f"{run}: W&B failed", "send it again: what the server has is skipped"):
        place = sink.place
        try:
            new = [record for record in records(run / METRICS_FILE) if not sink.has(record)]
            for record in new:
                sink.log(record)
            evaluated = {record["step"] for record in new if record["split"] == "validation"}
            for step, written in samples.items():
                if step in evaluated:
                    sink.sampled(step, written)
            for step, path, best in checkpoints:
                sink.saved(step, path, best)
            if export:
                sink.exported(run / "export", export)
        finally:
            sink.close(code if isinstance(code, int) else 1)  # a run that was killed has none
    return place


@contextmanager
def _failing(what: str, rule: str) -> Iterator[None]:
    """Turn any failure of W&B into a `ConfigError`."""
    try:
        yield
    except HeadwaterError:
        raise
    except Exception as error:  # of W&B, its service, pydantic, the network: of many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{what} ({redacted(reason)}); {rule}") from None


def _settings(run: Path, project: str | None) -> WandbConfig:
    """Return the run's own W&B settings, or the defaults if it had another tracker."""
    values = read_config(run)
    kept: dict[str, Any] = {name: values[f"tracker.{name}"] for name in OF_THE_RUN if f"tracker.{name}" in values}
    try:
        settings = rebuilt("tracker=wandb", kept)
    except (OmegaConfBaseException, ConfigError) as error:
        raise ConfigError(f"{run / CONFIG_FILE}: {str(error).partition(chr(10))[0]}; mend it there") from None
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
