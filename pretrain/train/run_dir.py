"""The run directory: its place, its lock, its configuration and its record.

Holds what is written once per run; metrics are in `tracking`, checkpoints in `checkpoint`, and what is read to use a
run's model in `trained_run`. Free of torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError, check
from pretrain.errors.redaction import redacted
from pretrain.files import check_place, hash_file, read_json, replace_file, sealed
from pretrain.registry import choices, choices_in, flattened, plain, rebuilt
from pretrain.settings.paths import expanded
from pretrain.settings.yaml_files import read_settings
from pretrain.tokenizer.base import PAIR_FILES
from pretrain.tracking.jsonl import METRICS_FILE, SAMPLES_FILE
from pretrain.train.operators import PROFILE

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = "lock"
LOG_FILE = "log.txt"
TOKENIZER_FILE = "tokenizer.json"
CHECKPOINTS = "checkpoints"
HANG = "hang"  # stacks of the ranks and torch's record of their collectives, where they waited for one in vain
FILES = (  # of a run
    *(RECORD_FILE, CONFIG_FILE, LOCK_FILE, LOG_FILE, TOKENIZER_FILE, METRICS_FILE, SAMPLES_FILE),
    *PAIR_FILES,
)
FACTS = ("vocab_size", "document_frame", "mask", "decoder_start", "names", "branch")  # entries of the record
FOLDERS = (CHECKPOINTS, HANG, PROFILE, "tensorboard", "wandb")
LOG_LEVEL = "HEADWATER_LOG_LEVEL"  # environment variable: the lowest level of messages that are printed
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
READERS = {
    "pretrain": "python -m pretrain.report, .evaluate, .sample and .export",
    "finetune": "python -m finetune.report, .predict, .evaluate and .export",
}  # of the runs of each program
_SCHEMA = re.compile(rb"\b(pretrain|finetune)_schema\b")  # the first of a configuration's defaults
RUN_NAME_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit"

log = logging.getLogger(__name__)


class RunRecord(TypedDict, total=False):
    """`run.json`: what other commands want to know of a run. Runs of older versions lack some of it."""

    name: str
    versions: dict[str, str]
    mfu: str  # what is meant by it
    exit: int | None  # null: it runs, or was killed
    init_from: str  # as it was found
    average: str  # of a run that `pretrain.average` made: of what its weights are the mean
    branch: dict[str, Any]  # of a run that branched off another: its `run`, the `step` and whether `data` continue
    network: dict[str, Any]  # `choice` and the values of a registered configuration
    parameters: int
    parameters_learnt: int
    flops_per_token: float
    host: str
    ranks: int
    micro_batch: dict[str, Any]  # that was found: its `size` in sequences, and for which ranks, devices and settings
    corpora: dict[str, str]  # source -> directory
    records: dict[str, int]  # of fine-tuning: training and validation
    chat_template: dict[str, Any] | None  # of fine-tuning on messages: how they become text
    vocab_size: int
    document_frame: tuple[list[int], list[int]]  # ids before and after a document
    mask: int | None
    decoder_start: int | None  # id that the decoder of an encoder-decoder sees first
    generation: (
        dict[str, Any] | None
    )  # of a run that began from other weights: what generation_config.json says of the rules of texts
    names: list[str]  # of a head's outputs
    best_step: int
    config: str  # SHA-256 of config.yaml
    steps: dict[str, str]  # name of each step that should be there -> SHA-256 of its manifest
    notes: list[str]  # what was lost, and what a setting waived


@dataclass(kw_only=True)
class RunConfig:
    """Where a run lives. The same name again resumes the run."""

    name: str = "pretrain"  # directory name under root: letters, digits, '.', '_' and '-'
    root: str = "runs"  # directory that holds all runs
    fresh: bool = False  # refuse to resume: no run of this name may have begun yet
    timeout_minutes: float = 10.0  # that ranks wait for a silent one; longer than any rank is busy by itself

    def __post_init__(self) -> None:
        check(RUN_NAME.fullmatch(self.name) is not None, "run.name", self.name, RUN_NAME_RULE)
        rule = "above 0, and at most 10,080 minutes, a week"
        check(0 < self.timeout_minutes <= 10_080, "run.timeout_minutes", self.timeout_minutes, rule)

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


class _Printed(_WithoutSecrets):
    """Tells warnings from what is only said."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{prefix}{super().format(record)}"


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
            check_place(path, files=FILES, folders=FOLDERS)
            lock = (path / LOCK_FILE).open("a+", encoding="utf-8", errors="replace")
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path} is not writable")
        except OSError as error:
            raise ConfigError(f"run.root={cfg.root}: cannot write the run directory ({error})") from None
        if not _locked(lock):
            lock.seek(0)
            raise ConfigError(
                f"run.name={cfg.name}: {path} is in use by {lock.read().strip()}; wait for it, stop it, "
                "or choose another run.name"
            )
        cfg.check_fresh()
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on host {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        return cls(path, lock)

    def close(self) -> None:
        """Give the directory free, also for a later run of this process."""
        self._lock.close()

    def write_config(self, cfg: Any, schema: str = "pretrain_schema") -> None:
        """Write `config.yaml`: resolved values under the choices that typed them, without secrets.

        It is itself a Hydra configuration. `schema` is the name under which the root's dataclass is stored.
        """
        values = redacted(plain(cfg))
        defaults = [schema, *choices_of(cfg), "_self_"]
        body = OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **values})).encode()
        replace_file(self.path / CONFIG_FILE, [body])
        self.record(config=hashlib.sha256(body).hexdigest())

    def begin(self) -> None:
        """Write `run.json`: this start is accepted. Until then it is as the start before left it."""
        self._begun = True
        self.record()

    def record(self, **entries: Any) -> None:
        """Add entries to `run.json`, or to what `begin` will write there."""
        self._record |= entries
        if self._begun:
            replace_file(self.path / RECORD_FILE, [sealed(self._record)])

    def end(self, code: int) -> None:
        """Record how the run ended."""
        self.record(exit=code)

    def note(self, text: str) -> None:
        """Warn of what nobody would see in the results, and keep it in `run.json`."""
        log.warning("%s", text)
        self.record(notes=[*self._record.get("notes", []), text])

    def recorded(self, key: str) -> Any:
        """Return an entry of `run.json`, None if there is none."""
        return self._record.get(key)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides, beside the network, what the run's weights mean."""
        return {key: self._record[key] for key in FACTS if key in self._record}

    def note_loss(self) -> None:
        """Note a `run.json` that is gone from the directory of a run."""
        there = [name for name in (CONFIG_FILE, METRICS_FILE) if (self.path / name).exists()]
        if there and not (self.path / RECORD_FILE).exists():
            self.note(f"{self.path / RECORD_FILE} is gone beside {there[0]}: what it knew of steps and notes is lost")

    @property
    def committed(self) -> dict[str, str]:
        """The steps that should be in `checkpoints`, with the SHA-256 of their manifests; see `newest_step`."""
        return self._record.get("steps", {})

    def keep_committed(self, there: Iterable[str], **new: str) -> None:
        """Record which of the committed steps are there, and the hashes of `new` ones."""
        known = {**self.committed, **new}
        self.record(steps={name: known[name] for name in there if name in known})

    @contextmanager
    def log_to(self, *packages: str) -> Iterator[None]:
        """While in here, send the messages of our packages to standard error and, with the time, to `log.txt`.

        Those of level DEBUG, such as tracebacks behind errors that other ranks caused, go to `log.txt` alone, and so do
        all that are below the level that the environment names.
        """
        to_stderr = logging.StreamHandler()
        to_stderr.setLevel(_printed_from())
        to_file = logging.FileHandler(self.path / LOG_FILE, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        to_stderr.setFormatter(_Printed())
        with handled(packages, to_stderr, to_file), closing(to_file):
            yield


@contextmanager
def handled(packages: Iterable[str], *handlers: logging.Handler) -> Iterator[None]:
    """While in here, let handlers have the messages of packages."""
    levels = {logger: logger.level for logger in map(logging.getLogger, packages)}
    for logger in levels:
        logger.setLevel(logging.DEBUG)
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)


def _printed_from() -> int:
    """Return the lowest level of messages that are printed. Raises `ConfigError` for a name that is none."""
    name, levels = os.environ.get(LOG_LEVEL, "INFO"), logging.getLevelNamesMapping()
    check(name in levels, LOG_LEVEL, name, f"one of {', '.join(levels)}")
    return levels[name]


def _locked(file: IO[str]) -> bool:
    """Lock a file for this process alone, unless another process holds it for longer than `is_locked` does."""
    for pause_s in (0.1, 0.0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(pause_s)
    return False


def is_locked(run: Path) -> bool:
    """Return whether a process holds a run directory, on this host or, where the file system passes it on, another."""
    if not (run / LOCK_FILE).is_file():
        return False
    with (run / LOCK_FILE).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def program_of(run: Path) -> str | None:
    """Return the program that wrote a run's config.yaml, "pretrain" or "finetune"; None if nothing says so."""
    path = run / CONFIG_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        found = _SCHEMA.search(file.read(4096))
    return found[1].decode() if found else None


def read_record(run: Path, *needed: str) -> dict[str, Any]:
    """Return a `RunRecord` that has the `needed` entries. Raises `ConfigError` for a directory without one."""
    path = run / RECORD_FILE
    try:
        record = read_json(path, RunRecord)
        if missing := [key for key in needed if key not in record]:
            raise ValueError(f"it lacks {missing[0]!r}")
        size = record.get("vocab_size", 1)
        if not 0 < size <= 2**32:
            raise ValueError(f"vocab_size is {size}")
        frame = record.get("document_frame", ())
        ids = [*(token for side in frame for token in side), record.get("mask") or 0]
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise ValueError(f"id {wrong[0]} is not below vocab_size")
        return record
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}); name a run directory such as runs/demo") from None


def choices_of(cfg: Any) -> list[dict[str, str]]:
    """Return the choices of a typed configuration, as Hydra's defaults name them."""
    return [{group if key == group else f"{group}@{key}": name} for key, group, name in choices_in(cfg)]


def read_config(run: Path) -> dict[str, Any]:
    """Return the values of a run's `config.yaml` by dotted key, none without one. Raises `ConfigError` if damaged."""
    return flattened(read_nested_config(run))


def read_nested_config(run: Path) -> dict[str, Any]:
    """Return what a run's `config.yaml` holds, nothing without one. Raises `ConfigError` if damaged."""
    path = run / CONFIG_FILE
    if not path.exists():
        return {}
    return read_settings(path)


def warn_of_changed_config(run: Path) -> None:
    """Warn of a `config.yaml` that is not the one that the run wrote."""
    path, known = run / CONFIG_FILE, read_record(run).get("config") if (run / RECORD_FILE).exists() else None
    if known is not None and (not path.is_file() or hash_file(path) != known):
        log.warning("%s is not as the run wrote it: what is read there may not be what it trained with", path)


def check_written_by(program: str, run: Path) -> None:
    """Raise a `ConfigError` that says what reads a run, if another program than this one wrote its configuration."""
    warn_of_changed_config(run)
    schemas = [f"{name}_schema" for name in READERS if name != program]
    defaults = read_nested_config(run).get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        if entry in schemas:
            other = entry.removesuffix("_schema")
            raise ConfigError(f"{run}: a run of python -m {other}, none of python -m {program}; use {READERS[other]}")


def made_with(run: Path) -> str:
    """Return what to type for a run that was made with plugins, which its own files may not have imported; else ""."""
    held = read_nested_config(run).get("plugins")
    names = [str(name) for name in held] if isinstance(held, list) else []
    options = " ".join(f"--plugins {name}" for name in names)
    setting = f"plugins=[{','.join(names)}]"
    return f"the run was made with {setting}: if you trust them, add {options}, or that setting" if names else ""


def choice_of(run: Path, group: str) -> Any:
    """Return the object that a run's config.yaml chose of a group, from its values there. Raises `ConfigError`."""
    config, path = read_nested_config(run), run / CONFIG_FILE
    defaults = config.get("defaults")
    chosen = [each[group] for each in defaults or [] if isinstance(each, dict) and group in each]
    if not chosen or not isinstance(config.get(group), dict):
        raise ConfigError(f"{path}: chooses no {group}; name a run directory such as runs/demo")
    return rebuilt_from(path, f"{group}={chosen[-1]}", config[group])


def rebuilt_from(path: Path, choice: str, values: dict[str, Any]) -> Any:
    """Return the object of a choice in a file. Raises `ConfigError` for an unknown one and for impossible values."""
    known = {f"{group}={name}" for group, name in choices().values()}
    if choice not in known and (plugins := made_with(path.parent)):
        raise ConfigError(f"{path}: {choice}: no choice of Headwater's; {plugins}")
    try:
        if any("${" in str(value) for value in values.values()):
            raise ValueError("a value refers to another one")  # nothing of a file is resolved
        return rebuilt(choice, values)
    except (ConfigError, OmegaConfBaseException, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: {choice} cannot be rebuilt ({reason}); restore the file") from None
