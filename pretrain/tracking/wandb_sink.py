"""`tracker=wandb`: a mirror of the run in Weights & Biases, in addition to metrics.jsonl and the console.

Holds everything that knows of W&B; that it cannot hold up training is the work of `background`.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import check
from pretrain.registry import register
from pretrain.tracking.background import BackgroundSink
from pretrain.tracking.base import Record, Sink, scalars
from pretrain.tracking.local import TrackerConfig
from pretrain.tracking.redaction import looks_secret, redacted

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger(__name__)

STEP = "train/step"  # the axis of every chart; W&B's own step counts calls and cannot go back when a run resumes
EXIT_MARGIN_S = 5  # beyond W&B's own limit on finishing


class WandbMode(StrEnum):
    """What W&B does with the data of a run."""

    online = "online"  # send as the run goes
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
    init_timeout_s: float = 30.0  # seconds to wait for the server at the start; then the run is recorded offline
    finish_timeout_s: float = 30.0  # seconds to wait for the upload at the end

    def __post_init__(self) -> None:
        texts = {"project": self.project, "entity": self.entity, "group": self.group}
        texts |= {f"tags[{index}]": tag for index, tag in enumerate(self.tags)}
        for name, text in texts.items():
            shown = "<redacted>"
            check(not looks_secret(text or ""), f"tracker.{name}", shown, "looks like a credential; set WANDB_API_KEY")
        check(self.project != "", "tracker.project", "''", "must not be empty; name a W&B project")
        for name in ("init_timeout_s", "finish_timeout_s"):
            check(getattr(self, name) > 0, f"tracker.{name}", getattr(self, name), "must be positive, in seconds")

    def services(self, run_dir: Path, run_name: str, config: Mapping[str, object], start_step: int) -> list[Sink]:
        """Start W&B in a thread, so that neither its import nor its server delays the first step."""

        def make() -> WandbSink:
            return WandbSink(self, run_dir, run_name, redacted(dict(config)))

        return [BackgroundSink("W&B", make, close_timeout_s=self.finish_timeout_s + EXIT_MARGIN_S)]


class WandbSink:
    """One W&B run; a resumed run continues it under the same id. Calls may block up to the configured time limits."""

    def __init__(self, settings: WandbConfig, run_dir: Path, run_name: str, config: object) -> None:
        # Read at import. W&B's own telemetry waits for a silent server at process exit, 20 s beyond all limits.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")  # the console is ours
        import wandb

        run_id = persistent_id(run_dir, run_name)

        def init(mode: str | None) -> Run:
            return wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=settings.tags,
                name=run_name,
                id=run_id,
                resume="allow",
                dir=run_dir,
                mode=mode,  # type: ignore[arg-type]
                config=config,  # type: ignore[arg-type]
                settings=wandb.Settings(
                    init_timeout=settings.init_timeout_s,
                    login_timeout=settings.init_timeout_s,
                    finish_timeout=settings.finish_timeout_s,
                    console="off",  # no copy of standard output
                    disable_code=True,
                ),
            )

        try:
            self._run = init(settings.wandb_mode.value if settings.wandb_mode else None)
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            logger.warning("W&B did not start (%s): recording offline, `wandb sync` sends it later", reason)
            wandb.teardown()  # the failed start still holds the run's id
            self._run = init("offline")
        if self._run.url:
            logger.info("W&B run: %s", self._run.url)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, record: Record) -> None:
        """Add one row to the run's history."""
        self._run.log({STEP: record["step"], **scalars(record)})

    def close(self, exit_code: int) -> None:
        """Wait for the upload, for a limited time; W&B shows the run as failed unless the exit code is 0."""
        self._run.finish(exit_code=exit_code)


def persistent_id(run_dir: Path, run_name: str) -> str:
    """Return the W&B id of a run directory, made at the first call and kept in `wandb-id.txt`.

    Its random end keeps runs of one name apart: W&B takes no id twice, not even that of a deleted run.
    """
    path = run_dir / "wandb-id.txt"
    if not path.exists():
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", run_name)[:40]
        fresh = path.with_suffix(".tmp")
        fresh.write_text(f"{readable}-{secrets.token_hex(4)}\n")
        fresh.replace(path)
    return path.read_text().strip()
