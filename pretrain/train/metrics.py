"""What is measured while a run trains: loss, speed, share of the hardware's peak, memory; and what a loss is worth.

Holds arithmetic and readings only: peaks of devices are in `peaks`, sinks in `tracking`, what is written of skipped
steps in `skips`; `loop` decides when to read.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.strategy.base import Update

MFU_CONVENTION = (
    "MFU = tokens/s x FLOPs per token (forward and backward, recomputation not counted) / dense peak of the devices, "
    "as in PaLM, arXiv 2204.02311, appendix B"
)

SENTENCES = ("sentence_loss", "sentence_accuracy")  # of labels of sequences: nats a label, and the share told right
ROWS = 1024  # steps that a table holds; a longer stretch between readings takes another one, of 32 KiB


class Measured(NamedTuple):
    """What was measured of an optimizer step."""

    loss: float | None  # nats per target, over the whole global batch; None: it had no target
    grad_norm: float  # global, before clipping
    skipped: bool  # whether the update was; where the norm is finite the guard refused it
    norm_z: float  # deviations above the usual norm, as a guard saw it; NaN: there is none, or it knew none


class Unlogged(NamedTuple):
    """What stands out of the steps since the previous log line. Checkpoints keep it."""

    loss_max: float | None = None  # the largest finite loss; None: there is none
    grad_norm_max: float | None = None  # the largest finite norm, skipped steps included
    norm_z: float | None = None  # the largest deviation that a guard saw; None: it measured none
    skipped: int = 0  # updates

    def and_then(self, steps: Sequence[Measured]) -> Unlogged:
        """Return the same with later steps."""
        return Unlogged(
            loss_max=_largest([self.loss_max, *(step.loss for step in steps)]),
            grad_norm_max=_largest([self.grad_norm_max, *(step.grad_norm for step in steps)]),
            norm_z=_largest([self.norm_z, *(step.norm_z for step in steps)]),
            skipped=self.skipped + sum(step.skipped for step in steps),
        )


class Reading(NamedTuple):
    """What is known at a log line."""

    loss: float | None  # as `Measured.loss`, of the newest step
    sentences: dict[str, float | None]  # SENTENCES of the newest step, None: it had no label; empty: no step has any
    grad_norm: float  # as `Measured.grad_norm`, of the newest step
    since: Unlogged


class StepMeter:
    """Sums of steps, kept on the device: `add` every micro-batch, `end_step` every step, `read` at log steps.

    Only `collect` and `read` wait for the device, and only there ranks add up their losses: a step costs no collective.
    `unlogged` is what stands out of the steps that were collected since the last reading.
    """

    def __init__(self, device: torch.device) -> None:
        # Of the step under way: nll of targets in nats; nll of labels, how many are right, how many there are.
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._has_labels = False
        self._newest = self._sums  # the same of the newest whole step
        self._unknown = torch.full((), math.nan, dtype=torch.float64, device=device)
        self._full: list[Tensor] = []  # tables of earlier steps
        self._table = self._blank()  # nll of this rank, norm, whether it was skipped, deviation; a row a step
        self._targets: list[int] = []  # of steps that are not collected yet, over all ranks
        self._labels = [0.0] * 3  # of the newest step that was collected, over all ranks
        self._last: Measured | None = None  # that step
        self.unlogged = Unlogged()

    def add(self, nll: Tensor, labels: Tensor | None = None) -> None:
        """Add the sums of one micro-batch over this rank's targets, `Loss.nll` () and `Loss.labels` (3,).

        An objective gives labels with every micro-batch, on every rank, or with none.
        """
        self._has_labels = labels is not None
        sums = [nll.reshape(1), nll.new_zeros(3) if labels is None else labels]
        self._sums = self._sums + torch.cat(sums).detach()

    def end_step(self, update: Update, num_targets: int) -> None:
        """Close the step with what became of it; `num_targets` is the number of targets in its global batch."""
        row = len(self._targets) % ROWS
        if self._targets and row == 0:
            self._full.append(self._table)
            self._table = self._blank()
        z = self._unknown if update.norm_z is None else update.norm_z
        values = [value.double() for value in (update.norm, update.skipped, z)]
        torch.stack([self._sums[0], *values], out=self._table[row])
        self._targets.append(num_targets)
        self._newest, self._sums = self._sums, torch.zeros_like(self._sums)

    def collect(self, sum_over_ranks: Callable[[Tensor], Tensor] = lambda local: local) -> list[Measured]:
        """Bring the steps to the host that it lacks, in one transfer, and return them, the oldest first.

        `sum_over_ranks` maps a tensor (n,) to its sum over data-parallel ranks; with more than one rank every rank
        calls `collect`, after the same step, because it is a collective.
        """
        steps, targets = len(self._targets), self._targets
        if not steps:
            return []
        table = torch.cat([*self._full, self._table])[:steps]
        sums = sum_over_ranks(torch.cat([table[:, 0], self._newest[1:]]))
        values = torch.cat([sums, table[:, 1:].t().flatten()]).tolist()
        self._targets, self._full = [], []
        nll, self._labels = values[:steps], values[steps : steps + 3]
        norms, skipped, deviations = (values[steps * part + 3 : steps * (part + 1) + 3] for part in (1, 2, 3))
        losses = [total / number if number else None for total, number in zip(nll, targets, strict=True)]
        found = [Measured(*each) for each in zip(losses, norms, map(bool, skipped), deviations, strict=True)]
        self.unlogged, self._last = self.unlogged.and_then(found), found[-1]
        return found

    def read(self, sum_over_ranks: Callable[[Tensor], Tensor] = lambda local: local) -> Reading:
        """Return the newest step's values and what stands out of those since the previous reading.

        What is not collected yet is collected first; see there.
        """
        self.collect(sum_over_ranks)
        assert self._last, "a step was taken"
        since, self.unlogged = self.unlogged, Unlogged()
        label_nll, right, labels = self._labels
        means = (label_nll / labels, right / labels) if labels else (None, None)
        return Reading(
            loss=self._last.loss,
            sentences=dict(zip(SENTENCES, means, strict=True)) if self._has_labels else {},
            grad_norm=self._last.grad_norm,
            since=since,
        )

    def _blank(self) -> Tensor:
        return torch.zeros(ROWS, 4, dtype=torch.float64, device=self._sums.device)


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None and math.isfinite(value)), default=None)


class Throughput:
    """Speed between log lines, from monotonic time and the counts of steps and tokens.

    Call `lap` after `StepMeter.read`, so that the device has finished the steps that the lap counts.
    """

    def __init__(
        self,
        step: int,  # steps done at the start, not 0 when a run resumes
        tokens: int,  # tokens seen at the start by all ranks together
        flops_per_token: float,  # forward and backward
        peak_flops: float | None,  # FLOP/s of all devices together, None = unknown
        finish: Callable[[], None] = lambda: None,  # waits for what the device has yet to do
        clock: Callable[[], float] = time.monotonic,  # seconds
    ) -> None:
        self._step, self._tokens = step, tokens
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._finish, self._clock = finish, clock
        self._since = clock()
        self._pausing = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block (an evaluation, a checkpoint) out of the lap.

        Waits for the device before and after: steps that are still queued belong to the lap, not to the pause. A pause
        inside another one is part of that.
        """
        if self._pausing:
            yield
            return
        self._pausing = True
        self._finish()
        began = self._clock()
        yield
        self._finish()
        self._since += self._clock() - began
        self._pausing = False

    @property
    def pausing(self) -> bool:
        """Whether a pause is under way."""
        return self._pausing

    def restart(self, step: int, tokens: int) -> None:
        """Begin the lap anew: what came since the last one, such as steps under a profiler, is measured nowhere."""
        self._since, self._step, self._tokens = self._clock(), step, tokens

    def lap(self, step: int, tokens: int) -> dict[str, float | None]:
        """Return `tokens_per_s` (all ranks), `step_s` (mean) and `mfu` (0 to 1, None = unknown) since the last lap."""
        now = self._clock()
        elapsed, steps, seen = now - self._since, step - self._step, tokens - self._tokens
        self._since, self._step, self._tokens = now, step, tokens
        if elapsed <= 0 or steps <= 0:
            return {"tokens_per_s": None, "step_s": None, "mfu": None}
        rate = seen / elapsed
        mfu = rate * self._flops_per_token / self._peak_flops if self._peak_flops else None
        return {"tokens_per_s": rate, "step_s": elapsed / steps, "mfu": mfu}


def memory(device: torch.device) -> dict[str, int]:
    """Return bytes in use by this process: allocated, reserved and peak on CUDA, resident on the CPU.

    `memory_bytes` is always the first of these; empty where the system does not tell.
    """
    if device.type == "cuda":
        return {
            "memory_bytes": torch.cuda.memory_allocated(device),
            "memory_reserved_bytes": torch.cuda.memory_reserved(device),
            "memory_peak_bytes": torch.cuda.max_memory_allocated(device),
        }
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return {}
    return {"memory_bytes": pages * os.sysconf("SC_PAGE_SIZE")}


def perplexity(nll: float) -> float:
    """Return exp of a mean negative log-likelihood in nats; infinity where that is beyond a float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def bits_per_byte(nll: float, num_targets: float, text_bytes: float) -> float:
    """Return the bits that the model spends on a byte of text, comparable between tokenizers.

    `nll` is the mean over `num_targets` targets in nats; those targets spell `text_bytes` bytes of UTF-8.
    """
    return nll * num_targets / text_bytes / math.log(2)
