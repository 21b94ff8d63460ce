"""The run directory: its place, its configuration, its record and its log.

Holds what is written once per run; the lock is in `lock`, what is read of it again in `record`. Metrics are in
`tracking`, checkpoints in `checkpoint`, and what is read to use a run's model in `trained`. Free of torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from pretrain.errors import ConfigError, check
from pretrain.errors.redaction import redacted
from pretrain.errors.unwritable import writes_named
from pretrain.files import check_place, check_writable, replace_file, sealed
from pretrain.registry import plain
from pretrain.settings.paths import expanded
from pretrain.tokenizer.base import PAIR_FILES
from pretrain.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, SKIPS_FILE
from pretrain.train.profiling.operators import PROFILE
from pretrain.train.run_dir.lock import LOCK_FILE, open_lock, sign, take
from pretrain.train.run_dir.log_file import LogFile
from pretrain.train.run_dir.record import CONFIG_FILE, RECORD_FILE, choices_of, read_record

LOG_FILE = "log.txt"
TOKENIZER_FILE = "tokenizer.json"
CHECKPOINTS = "checkpoints"
DETOURS_FILE = "detours.json"  # ranges of data that the run skips: `detours`
TRACE_FILE = "trace.jsonl"  # a line a step, with `step`, `loss` in nats a target and `grad_norm`: `trace`
HANG = "hang"  # stacks of the ranks and torch's record of their collectives, where they waited for one in vain
FILES = (  # of a run
    *(RECORD_FILE, CONFIG_FILE, LOCK_FILE, LOG_FILE, TOKENIZER_FILE, METRICS_FILE, SAMPLES_FILE),
    *(DETOURS_FILE, TRACE_FILE, SKIPS_FILE),
    *PAIR_FILES,
)
FACTS = ("vocab_size", "document_frame", "mask", "decoder_start", "names", "branch")  # entries of the record
FOLDERS = (CHECKPOINTS, HANG, PROFILE, "tensorboard", "wandb")
LOG_LEVEL = "HEADWATER_LOG_LEVEL"  # environment variable: the lowest level of messages that are printed
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RUN_NAME_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit"

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RunConfig:
    """Where a run lives. The same name again resumes the run."""

    name: str = "pretrain"  # directory name under root: letters, digits, '.', '_' and '-'
    root: str = "runs"  # directory that holds all runs
    fresh: bool = False  # refuse to resume: no run of this name may have begun yet
    timeout_minutes: float = 10.0  # that ranks wait for a silent one; longer than any rank is busy by itself
    heartbeat_timeout_s: float | None = 120.0  # seconds until a rank without a sign of life is silent; null or 0: never
    straggler_ratio: float | None = 2.0  # warn of a rank that is busy so many times as long as others; null: of none
    debug_collectives: bool = False  # compare what ranks are about to exchange: names those that differ; slow

    def __post_init__(self) -> None:
        check(RUN_NAME.fullmatch(self.name) is not None, "run.name", self.name, RUN_NAME_RULE)
        rule = "above 0, and at most 10,080 minutes, a week"
        check(0 < self.timeout_minutes <= 10_080, "run.timeout_minutes", self.timeout_minutes, rule)
        beats, rule = self.heartbeat_timeout_s or 1, "from 1 second to 604,800, a week; null or 0 for no limit"
        check(1 <= beats <= 604_800, "run.heartbeat_timeout_s", self.heartbeat_timeout_s, rule)
        ratio, rule = self.straggler_ratio, "above 1, such as 2 for twice the median of the others; null for no warning"
        check(ratio is None or ratio > 1, "run.straggler_ratio", ratio, rule)

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
            lock = open_lock(path)
            check_writable(path, files=FILES, folders=FOLDERS)
            take(lock, path)
            cfg.check_fresh()
            sign(lock)
        except OSError as error:
            raise ConfigError(f"run.root={cfg.root}: cannot write the run directory ({error})") from None
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
        self.write(CONFIG_FILE, body)
        self.record(config=hashlib.sha256(body).hexdigest())

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run, whole or not at all. Raises `ResourceError` if it cannot be written."""
        with writes_named(self.path / name):
            replace_file(self.path / name, [content])

    def begin(self) -> None:
        """Write `run.json`: this start is accepted. Until then it is as the start before left it."""
        self._begun = True
        self.record()

    def record(self, **entries: Any) -> None:
        """Add entries to `run.json`, or to what `begin` will write there. Raises `ResourceError` if it cannot."""
        self._record |= entries
        if self._begun:
            self.write(RECORD_FILE, sealed(self._record))

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
        to_file = LogFile(self.path / LOG_FILE)
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
