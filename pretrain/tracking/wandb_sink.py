"""`tracker=wandb`: a mirror of the run in Weights & Biases, in addition to metrics.jsonl and the console.

Holds everything that knows W&B; `background` keeps it from holding up training.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pretrain.errors import ConfigError, check
from pretrain.errors.redaction import looks_secret, redacted
from pretrain.files import hash_file, replace_file
from pretrain.registry import register
from pretrain.tracking.background import BackgroundSink
from pretrain.tracking.base import Record, Sample, Sink, scalars
from pretrain.tracking.local_tracker import TrackerConfig

logger = logging.getLogger(__name__)

STEP = "train/step"  # the axis of every chart; W&B's own step counts calls and cannot go back when a run resumes
MAX_CONFIG_BYTES = 15_000_000  # "run config cannot exceed 15 MB", says the server
UPLOAD_SHARE = 0.8  # of `finish_timeout_s`; the rest is for W&B's own process to end


class WandbMode(StrEnum):
    """What W&B does with the data of a run."""

    online = "online"  # send while the run goes
    offline = "offline"  # write to the run directory; `wandb sync` sends it later
    disabled = "disabled"


@register("tracker", "wandb")
@dataclass(kw_only=True)
class WandbConfig(TrackerConfig):
    """Which W&B project a run belongs to. The API key comes from WANDB_API_KEY or `wandb login`, never from here."""

    project: str = "headwater"  # W&B project that runs are listed under
    entity: str | None = None  # user or team; null = the account's default
    group: str | None = None  # runs that W&B shows together
    tags: list[str] = field(default_factory=list)  # labels to filter runs by
    wandb_mode: WandbMode | None = None  # null = as the environment's WANDB_MODE says, else online
    init_timeout_s: float = 30.0  # seconds to wait for a server that does not answer; training does not wait
    finish_timeout_s: float = 8.0  # seconds that the end of the run waits for W&B at most

    def __post_init__(self) -> None:
        texts = {"project": self.project, "entity": self.entity, "group": self.group}
        texts |= {f"tags[{index}]": tag for index, tag in enumerate(self.tags)}
        for name, text in texts.items():
            shown = "<redacted>"
            check(not looks_secret(text or ""), f"tracker.{name}", shown, "looks like a credential; set WANDB_API_KEY")
        for name in ("init_timeout_s", "finish_timeout_s"):
            check(getattr(self, name) > 0, f"tracker.{name}", getattr(self, name), "must be positive, in seconds")

    def check_run(self, name: str, config: Mapping[str, object]) -> None:
        """Raise `ConfigError` for what W&B's client or server refuses, names that the environment gives among them.

        Offline, the server would refuse it when the run is sent, and the run be lost to it.
        """
        if (self.wandb_mode or os.environ.get("WANDB_MODE")) == WandbMode.disabled:
            return
        _check_text("run.name", name, 128)
        _check_text("tracker.project", self.project, 128, without="/\\#?%:")
        _check_text(*_decisive("tracker.entity", self.entity, "WANDB_ENTITY"), 128, without="/\\#?%: ")
        _check_text(*_decisive("tracker.group", self.group, "WANDB_RUN_GROUP"), 128)
        _check_text("WANDB_JOB_TYPE", os.environ.get("WANDB_JOB_TYPE") or None, 64)
        outside = os.environ.get("WANDB_TAGS")
        for index, tag in enumerate(self.tags or (outside.split(",") if outside else [])):
            _check_text(f"tracker.tags[{index}]" if self.tags else "WANDB_TAGS", tag, 64)
        size = len(json.dumps(config))
        rule = f"W&B takes {MAX_CONFIG_BYTES:,} bytes of configuration; shorten its lists: give a pattern, not files"
        check(size <= MAX_CONFIG_BYTES, "tracker", f"wandb with {size:,} bytes", rule)

    def services(self, run_dir: Path, run_name: str, config: Mapping[str, object], start_step: int) -> list[Sink]:
        """Start W&B in a thread, so that neither its import nor its server delays the first step."""

        def make() -> WandbSink:
            upload_s = UPLOAD_SHARE * self.finish_timeout_s
            return WandbSink(self, run_dir, run_name, dict(config), upload_timeout_s=upload_s)

        remedy = "and `report --sync` sends metrics.jsonl to W&B later"
        return [BackgroundSink("W&B", make, close_timeout_s=self.finish_timeout_s, remedy=remedy)]


class WandbSink(Sink):
    """One W&B run; a resumed run continues it under the same id. Calls may block up to the configured time limits.

    Raises `wandb.Error` where W&B does not start, `TimeoutError` where an upload does not end in time.
    """

    def __init__(
        self,
        settings: WandbConfig,
        run_dir: Path,
        run_name: str,
        config: object,  # plain values, without secrets
        *,
        upload_timeout_s: float,  # seconds to wait for the upload at the end; 0: as long as it takes
    ) -> None:
        quieten()
        import wandb

        try:
            with _command_line_redacted():
                self._run = wandb.init(
                    project=settings.project,
                    entity=settings.entity,
                    group=settings.group,
                    tags=settings.tags or None,  # None, as for the group: what WANDB_TAGS says, which a list overrides
                    name=run_name,
                    id=persistent_id(run_dir, run_name),
                    resume="allow",
                    dir=run_dir,
                    mode=settings.wandb_mode.value if settings.wandb_mode else None,
                    config=config,  # type: ignore[arg-type]
                    settings=wandb.Settings(
                        init_timeout=settings.init_timeout_s,
                        login_timeout=settings.init_timeout_s,
                        finish_timeout=upload_timeout_s,
                        finish_timeout_raises=True,
                        console="off",  # no copy of standard output
                        disable_code=True,
                    ),
                )
            if not self._run.disabled:
                logger.info("W&B run: %s", self.place)
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP)
            before = dict(self._run.summary) if self._run.resumed else {}
            self._known = {name: value for name, value in before.items() if isinstance(value, int | float)}
        except Exception:
            end_service()
            raise

    @property
    def place(self) -> str:
        """The run's address, or offline the directory that `wandb sync` sends."""
        return self._run.url or str(Path(self._run.dir).parent)

    def has(self, record: Record) -> bool:
        """Whether the server had this record, or a later one of its split, before this start."""
        counts = {name: value for name, value in scalars(record).items() if name.endswith("/tokens")}
        return all(name in self._known and value <= self._known[name] for name, value in counts.items())

    def log(self, record: Record) -> None:
        """Add one row to the run's history."""
        self._run.log({STEP: record["step"], **scalars(record)})

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Show the samples as a page, which W&B lets people leaf through by step."""
        import wandb

        texts = (f"<b>{html.escape(prompt)}</b>{html.escape(continuation)}" for prompt, continuation in samples)
        page = "\n<hr>\n".join(f'<div style="white-space: pre-wrap">{text}</div>' for text in texts)
        self._run.log({STEP: step, "samples": wandb.Html(page, inject=False)})

    def saved(self, step: int, path: Path, best: bool) -> None:
        """Log the checkpoint as a version of the run's model artifact: its place and its hash, none of its bytes.

        A checkpoint that retention has deleted since is skipped.
        """
        try:
            digest = hash_file(path / "manifest.json")  # which has the SHA-256 of each of the other files
            about = {"step": step, "manifest_sha256": digest, "best": best}
            aliases = ["latest", f"step-{step}", *(["best"] if best else [])]
            self._refer("checkpoint", path, about, aliases, checksum=False)  # True would read every byte again
        except (OSError, ValueError):  # deleted, or while its files were listed
            return

    def exported(self, path: Path, about: dict[str, object]) -> None:
        """Log an export as a version of its own artifact: its place and the MD5 of its files, none of their bytes."""
        self._refer("export", path, about, ["latest"], checksum=True)

    def _refer(self, kind: str, path: Path, metadata: dict[str, object], aliases: list[str], *, checksum: bool) -> None:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", "model", metadata=metadata)
        artifact.add_reference(path.absolute().as_uri(), checksum=checksum)
        try:
            self._run.log_artifact(artifact, aliases=aliases)
        except Exception as error:  # unlike rows, which wait in a queue, this asks the server at once
            logger.info("W&B did not log %s: %s", path, error)

    def close(self, exit_code: int) -> None:
        """Wait for the upload, for a limited time; W&B shows the run as failed unless the exit code is 0."""
        try:
            self._run.finish(exit_code=exit_code)
        finally:
            end_service()


def _decisive(key: str, value: str | None, variable: str) -> tuple[str, str | None]:
    """Return a setting by its key or, where it is None, the environment variable that W&B takes in its place."""
    return (key, value) if value is not None else (variable, os.environ.get(variable) or None)


def _check_text(key: str, value: str | None, longest: int, *, without: str = "") -> None:
    """Raise a `ConfigError` for a name that W&B refuses; None is for W&B to choose."""
    if value is None:
        return
    rule = f"has {len(value)} characters, and W&B takes 1 to {longest}; choose another"
    check(1 <= len(value) <= longest, key, repr(value), rule)
    refused = sorted(set(without) & set(value))
    check(not refused, key, repr(value), f"W&B refuses {' and '.join(map(repr, refused))} there; choose another")


def quieten() -> None:
    """Set the environment variables that W&B reads when it is first imported."""
    # Its own telemetry waits for a silent server at process exit, 20 s beyond all limits.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")  # the console is ours


@contextmanager
def _command_line_redacted() -> Iterator[None]:
    """Hide secrets among the words of the command, which W&B takes from `sys.argv` into the run's metadata."""
    typed = sys.argv
    sys.argv = redacted(typed)
    try:
        yield
    finally:
        sys.argv = typed


def end_service() -> None:
    """End W&B's own process and wait for it now; at the interpreter's exit, W&B would wait without a limit."""
    import wandb

    with suppress(Exception, SystemExit):  # the process may be gone, or have failed, which W&B reports by SystemExit
        wandb.teardown()


def persistent_id(run_dir: Path, run_name: str) -> str:
    """Return the W&B id of a run directory, made at the first call and kept in `wandb-id.txt`.

    Its random suffix distinguishes runs of one name: W&B takes no id twice, not even that of a deleted run.
    """
    path = run_dir / "wandb-id.txt"
    if not path.exists():
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", run_name)[:40]
        replace_file(path, [f"{readable}-{secrets.token_hex(4)}\n".encode()])
    held = path.read_bytes().strip().decode(errors="replace")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", held):
        raise ConfigError(f"{path}: {held[:80]!r} is no W&B id; restore the file, or delete it to send the run anew")
    return held
