"""Whether a run diverges: its loss at log lines, against the lines before.

Holds the settings and the comparison; what becomes of a run that diverges is in `rewinding`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any, TypedDict

from pretrain.errors import Diverged, check

RISE = 1.0  # nats, where detours are asked for and no rise is named


class Action(Enum):
    """What a run does once it diverges."""

    stop = "stop"
    detour = "detour"


@dataclass(kw_only=True)
class DivergenceConfig:
    """When a run counts as diverged, and what it does then."""

    action: Action = Action.stop  # stop: end with exit code 5; detour: go back, skip the data met there, and go on
    rise: float | None = None  # nats above the median that are too much; 0: not watched; null: 1.0 with detours, else 0
    window: int = 64  # log lines before, of whose losses the median is taken; lines that are too high do not count
    lines: int = 3  # log lines in a row that are too high before the run counts as diverged
    rewind: int = 100  # optimizer steps that a detour goes back at least, to a step that is saved
    max_detours: int = 3  # detours that a run takes by itself before it stops

    def __post_init__(self) -> None:
        rule = "above 0 nats, 0 to watch no loss, or null"
        check(self.rise is None or 0 <= self.rise < math.inf, "divergence.rise", self.rise, rule)
        check(self.window >= 1, "divergence.window", self.window, "at least 1 log line")
        check(self.lines >= 1, "divergence.lines", self.lines, "at least 1 log line")
        check(self.rewind >= 1, "divergence.rewind", self.rewind, "at least 1 optimizer step")
        check(self.max_detours >= 1, "divergence.max_detours", self.max_detours, "at least 1, or choose action=stop")

    @property
    def detours(self) -> bool:
        """Whether the run goes on behind a detour."""
        return self.action is Action.detour

    @property
    def limit(self) -> float:
        """Return the nats above the median that are too much, 0 if the loss is not watched."""
        return self.rise if self.rise is not None else RISE if self.detours else 0.0

    def check_saving(self, every: int, keep: int) -> None:
        """Raise `ConfigError` where no step would be left to go back to: `keep` stay of those saved `every` so many."""
        reach = every * (keep - 1)
        rule = (
            f"at most checkpoint.every x (checkpoint.keep - 1) = {every} x {keep - 1} = {reach} optimizer steps, since "
            "older steps are deleted; keep more, or go back less"
        )
        check(not self.detours or self.rewind <= reach, "divergence.rewind", self.rewind, rule)


class WatchState(TypedDict):
    """What a checkpoint keeps of a watch."""

    losses: list[float]
    high: list[float]
    since: int
    newest: int


class Watch:
    """Looks at each log line of a run. All ranks see the same losses, and so decide alike."""

    def __init__(self, cfg: DivergenceConfig) -> None:
        self.cfg = cfg
        self._losses: deque[float] = deque(maxlen=cfg.window)  # of the newest lines that were not too high
        self._high: list[float] = []  # of the lines in a row that are, up to the newest
        self._since = 0  # optimizer steps taken before the first of those
        self._newest = 0  # optimizer steps taken at the newest line

    def line(self, step: int, loss: float | None) -> None:
        """See the loss of a line in nats, None if it has none. Raises `Diverged` once too many are too high."""
        before, self._newest = self._newest, step
        if not self.cfg.limit or loss is None:
            return
        middle = median(self._losses) if self._losses else math.inf
        if math.isfinite(loss) and loss <= middle + self.cfg.limit:
            self._high = []
            self._losses.append(loss)
            return
        self._since = self._since if self._high else before
        self._high.append(loss)
        if len(self._high) >= self.cfg.lines:
            values = ", ".join(f"{value:.4f}" for value in self._high)
            raise Diverged(
                f"step {step}: the loss diverges: {values} in {len(self._high)} log lines in a row, {self.cfg.limit:g} "
                f"nats or more above {middle:.4f}, the median before (divergence.rise){self._advice}",
                first=self._since,
                step=step,
            )

    def progress(self) -> WatchState:
        """Return what a checkpoint keeps."""
        return {"losses": [*self._losses], "high": self._high, "since": self._since, "newest": self._newest}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `progress` left in the state of a step; nothing, where an older version saved it."""
        if state := saved.get("divergence"):
            self._losses.extend(state["losses"])
            self._high, self._since, self._newest = state["high"], state["since"], state["newest"]
        else:
            self._newest = saved["step"]

    @property
    def _advice(self) -> str:
        if self.cfg.detours:
            return ""
        others = "lower optim.lr, or go around the data with divergence.action=detour or python -m pretrain.detour"
        return f"; python -m pretrain.replay says whether data or hardware are to blame; {others}"
