"""The run directory: its place, its lock, its configuration and its record.

Holds what is written once per run; metrics are in `tracking`, checkpoints in `checkpoint`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from pretrain import models
from pretrain.errors import ConfigError, check
from pretrain.errors.redaction import redacted
from pretrain.files import expanded, replace_file
from pretrain.registry import choices_in, discover, flattened, plain, rebuilt
from pretrain.settings.yaml_files import read_settings

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = "lock"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
READERS = {
    "pretrain": "python -m pretrain.report, .sample and .export",
    "finetune": "python -m finetune.report, .predict, .evaluate and .export",
}  # of the runs of each program
RUN_NAME_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit"


@dataclass(kw_only=True)
class RunConfig:
    """Where a run lives. The same name again resumes the run."""

    name: str = "pretrain"  # directory name under root: letters, digits, '.', '_' and '-'
    root: str = "runs"  # directory that holds all runs
    fresh: bool = False  # refuse to resume: no run of this name may have begun yet

    def __post_init__(self) -> None:
        check(RUN_NAME.fullmatch(self.name) is not None, "run.name", self.name, RUN_NAME_RULE)

    @property
    def directory(self) -> Path:
        """Return the run directory, the same on every rank and after every requeue."""
        return Path(expanded(self.root, "run.root")) / self.name

    def check_fresh(self) -> None:
        """Raise `ConfigError` if a run of this name has begun and must not have."""
        if self.fresh and (self.directory / RECORD_FILE).exists():
            rule = "choose another run.name, or drop run.fresh to resume it"
            raise ConfigError(f"run.fresh=true: {self.directory} holds a run; {rule}")


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class RunDirectory:
    """The directory of one run, held by one process (rank 0) at a time."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock  # held as long as the file is open; the system releases it when the process dies
        self._record: dict[str, Any] = read_record(path) if (path / RECORD_FILE).exists() else {}
        self._begun = False

    @classmethod
    def claim(cls, cfg: RunConfig) -> RunDirectory:
        """Create and lock the directory. Raises `ConfigError` if it is taken, not fresh, or not writable."""
        path = cfg.directory
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / LOCK_FILE).open("a+", encoding="utf-8")
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path} is not writable")
        except OSError as error:
            raise ConfigError(f"run.root={cfg.root}: cannot write the run directory ({error})") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"run.name={cfg.name}: {path} is in use by {lock.read().strip()}; wait for it, stop it, "
                "or choose another run.name"
            ) from None
        cfg.check_fresh()
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on host {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        return cls(path, lock)

    def changes(self, cfg: Any) -> list[str]:
        """Name each setting whose value is not that of the run's last start, with both values."""
        before, now = read_config(self.path), flattened(redacted(plain(cfg)))
        return [f"{key}: {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]

    def write_config(self, cfg: Any, schema: str = "pretrain_schema") -> None:
        """Write `config.yaml`: resolved values under the choices that typed them, without secrets.

        It is itself a Hydra configuration. `schema` is the name under which the root's dataclass is stored.
        """
        defaults: list[Any] = [schema]
        for key, group, name in choices_in(cfg):
            defaults.append({group if key == group else f"{group}@{key}": name})
        body = OmegaConf.to_yaml(OmegaConf.create({"defaults": [*defaults, "_self_"], **redacted(plain(cfg))}))
        replace_file(self.path / CONFIG_FILE, [body.encode()])

    def begin(self) -> None:
        """Write `run.json`: this start is accepted. Until then it is as the start before left it."""
        self._begun = True
        self.record()

    def record(self, **entries: Any) -> None:
        """Add entries to `run.json`, or to what `begin` will write there."""
        self._record |= entries
        if self._begun:
            replace_file(self.path / RECORD_FILE, [json.dumps(self._record, indent=1).encode(), b"\n"])

    @contextmanager
    def log_to(self, *packages: str) -> Iterator[None]:
        """While in here, send the messages of our packages to standard error and, with the time, to `log.txt`.

        Those of level DEBUG, the tracebacks behind errors that other ranks caused, go to `log.txt` alone.
        """
        to_file = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        to_stderr = logging.StreamHandler()
        to_stderr.setLevel(logging.INFO)
        to_file.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        to_stderr.setFormatter(_WithoutSecrets())
        handlers = [to_stderr, to_file]
        loggers = [logging.getLogger(package) for package in packages]
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
            for handler in handlers:
                logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                for handler in handlers:
                    logger.removeHandler(handler)
            to_file.close()


def read_record(run: Path) -> dict[str, Any]:
    """Return `run.json` of a run directory. Raises `ConfigError` for a directory that is none."""
    path = run / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("holds no JSON object")
        return record
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}); name a run directory such as runs/demo") from None


def read_config(run: Path) -> dict[str, Any]:
    """Return the values of a run's `config.yaml` by dotted key, none without one. Raises `ConfigError` if damaged."""
    return flattened(read_nested_config(run))


def read_nested_config(run: Path) -> dict[str, Any]:
    """Return what a run's `config.yaml` holds, nothing without one. Raises `ConfigError` if damaged."""
    path = run / CONFIG_FILE
    if not path.exists():
        return {}
    return read_settings(path)


def check_written_by(program: str, run: Path) -> None:
    """Raise a `ConfigError` that says what reads a run, if another program than this one wrote its configuration."""
    schemas = [f"{name}_schema" for name in READERS if name != program]
    for entry in read_config(run).get("defaults") or []:
        if entry in schemas:
            other = entry.removesuffix("_schema")
            raise ConfigError(f"{run}: a run of python -m {other}, none of python -m {program}; use {READERS[other]}")


def network_of(run: Path) -> Any:
    """Return the configuration of a run's network, such as a DecoderConfig, without composing anything."""
    discover(models)
    recorded = read_record(run).get("network")
    if recorded is None:  # a run older than this entry
        return choice_of(run, "model")
    values = dict(recorded)
    return rebuilt(values.pop("choice"), values)


def choice_of(run: Path, group: str) -> Any:
    """Return the object that a run's config.yaml chose of a group, from its values there. Raises `ConfigError`."""
    config = read_nested_config(run)
    chosen = [entry[group] for entry in config.get("defaults", []) if isinstance(entry, dict) and group in entry]
    if not chosen:
        raise ConfigError(f"{run / CONFIG_FILE}: chooses no {group}; name a run directory such as runs/demo")
    return rebuilt(f"{group}={chosen[-1]}", config[group])
