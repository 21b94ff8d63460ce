"""What is measured while a run trains: loss, speed, share of the hardware's peak, memory; and what a loss is worth.

Holds arithmetic and readings only: peaks of devices are in `peaks`, sinks in `tracking`; `loop` decides when to read.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MFU_CONVENTION = (
    "MFU = tokens/s x FLOPs per token (forward and backward, recomputation not counted) / dense peak of the devices, "
    "as in PaLM, arXiv 2204.02311, appendix B"
)


SENTENCES = ("sentence_loss", "sentence_accuracy")  # of labels of sequences: nats a label, and the share told right


class Reading(NamedTuple):
    """What `StepMeter.read` brings to the host, in one transfer."""

    loss: float | None  # nats per target of the newest step, over the whole global batch; None: it had no target
    sentences: dict[str, float | None]  # SENTENCES of the newest step, None: it had no label; empty: no step has any
    grad_norm: float  # global gradient norm of the newest step, before clipping
    skipped: int  # updates skipped since the previous reading (their gradient norm was not finite)
    skipped_in_a_row: int  # skipped updates up to the newest step without a good one between, over all readings


class StepMeter:
    """Sums of a step, kept on the device: `add` every micro-batch, `end_step` every step, `read` at log steps.

    Only `read` waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        # Of the step under way: nll of targets in nats; nll of labels, how many are right, how many there are.
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._has_labels = False
        self._skipped = torch.zeros((), dtype=torch.float64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.float64, device=device)
        self._newest = self._sums  # the same of the newest whole step
        self._grad_norm = self._skipped

    def add(self, nll: Tensor, labels: Tensor | None = None) -> None:
        """Add the sums of one micro-batch over this rank's targets, `Loss.nll` () and `Loss.labels` (3,).

        An objective gives labels with every micro-batch, on every rank, or with none.
        """
        self._has_labels = labels is not None
        sums = [nll.reshape(1), nll.new_zeros(3) if labels is None else labels]
        self._sums = self._sums + torch.cat(sums).detach()

    def end_step(self, grad_norm: Tensor) -> None:
        """Close the step with its global gradient norm (); a non-finite one counts as a skipped update."""
        skipped = (~torch.isfinite(grad_norm)).to(self._skipped)
        self._skipped = self._skipped + skipped
        self._in_a_row = (self._in_a_row + 1) * skipped
        self._newest, self._sums = self._sums, torch.zeros_like(self._sums)
        self._grad_norm = grad_norm.detach()

    def read(self, num_targets: int, sum_over_ranks: Callable[[Tensor], Tensor] = lambda local: local) -> Reading:
        """Return the newest step's values and restart the count of skipped updates.

        `num_targets` is the number of targets in the step's global batch; 0 is possible where they are drawn.
        `sum_over_ranks` maps a (4,) tensor to its sum over data-parallel ranks; with more than one rank every rank
        calls `read`, because it is a collective.
        """
        others = torch.stack([value.double() for value in (self._grad_norm, self._skipped, self._in_a_row)])
        values = torch.cat([sum_over_ranks(self._newest), others]).tolist()
        nll, label_nll, right, labels, grad_norm, skipped, in_a_row = values
        self._skipped = torch.zeros_like(self._skipped)
        means = (label_nll / labels, right / labels) if labels else (None, None)
        return Reading(
            loss=nll / num_targets if num_targets else None,
            sentences=dict(zip(SENTENCES, means, strict=True)) if self._has_labels else {},
            grad_norm=grad_norm,
            skipped=int(skipped),
            skipped_in_a_row=int(in_a_row),
        )


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
