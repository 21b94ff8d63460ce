"""The newest steps of a run one by one: loss and gradient norm of each, kept on the device until a step is saved.

Holds the ring that keeps them and the file that they are written to; `pretrain.replay` reads it. Log lines have the
same numbers, and cost a wait for the device each.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.distributed.world import World
from pretrain.errors import check
from pretrain.strategy.base import Update
from pretrain.tracking.jsonl import JsonlSink
from pretrain.train.loop import LogConfig, TrainState
from pretrain.train.metrics import StepMeter


@dataclass(kw_only=True)
class TracedLogConfig(LogConfig):
    """How often metrics are read from the device and written, and how many steps are kept one by one."""

    trace: int = 0  # newest optimizer steps whose loss and norm go to trace.jsonl with each save; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.trace >= 0, "log.trace", self.trace, "0 or more optimizer steps")


def drop_later(path: Path, step: int) -> None:
    """Drop the lines of later steps than `step` from a file of an earlier start, if there is one."""
    if path.exists():
        lines = JsonlSink(path)
        lines.truncate_after(step or -1)
        lines.close(0)


class _Counts(NamedTuple):
    """What the host knows of a step."""

    step: int
    targets: int  # over all ranks


class Trace:
    """Loss and norm of the newest steps, in a ring on the device. Only `write` waits for it, and is a collective."""

    def __init__(self, steps: int, state: TrainState, world: World, path: Path | None) -> None:
        """Keep so many steps of a run whose `state` moves on; rank 0 has the `path` of the file, others None."""
        self._state = state
        self._world = world
        self._ring = torch.zeros(steps, 2, dtype=torch.float64, device=world.device)  # nll of this rank, and the norm
        self._kept: deque[_Counts] = deque(maxlen=steps)  # of the steps that are not written yet
        self._next = 0  # the row of the next step
        self._file = JsonlSink(path) if path else None

    def add(self, nll: Tensor, grad_norm: Tensor) -> None:
        """Keep the newest step: the sum of this rank's losses () in nats, and the global norm ()."""
        self._ring[self._next].copy_(torch.stack([nll.double(), grad_norm.double()]))
        self._next = (self._next + 1) % len(self._ring)
        self._kept.append(_Counts(self._state.step, self._state.step_targets))

    def write(self) -> None:
        """Write a line for each step that is kept and not written yet. Raises `ResourceError` for a full disk."""
        rows = (torch.arange(-len(self._kept), 0, device=self._ring.device) + self._next) % len(self._ring)
        nll, norms = self._ring[rows].unbind(1)
        values = torch.stack([self._world.sum_tensor(nll.contiguous()), norms], dim=1).tolist()
        for (step, targets), (total, norm) in zip(self._kept, values, strict=True):
            if self._file:
                self._file.log({"step": step, "loss": total / targets if targets else None, "grad_norm": norm})
        self._kept.clear()

    def close(self, exit_code: int) -> None:
        """Close the file."""
        if self._file:
            self._file.close(exit_code)


class TracedMeter(StepMeter):
    """A meter whose steps are traced, too."""

    def __init__(self, device: torch.device, trace: Trace) -> None:
        super().__init__(device)
        self._trace = trace

    def end_step(self, update: Update, num_targets: int) -> None:
        """Close the step, and trace it."""
        super().end_step(update, num_targets)
        self._trace.add(self._newest[0], update.norm)
