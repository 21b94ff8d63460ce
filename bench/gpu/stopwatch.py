"""How long steps take on a device, and how much memory: what is measured alike of Headwater and of its peers.

Holds clocks and counters; what is trained is the caller's.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Plan:
    """How many steps are taken, and which of them count."""

    warm_up: int  # steps that do not count: graphs are compiled, memory is allocated
    rounds: int  # medians are over so many
    steps: int  # of a round; the host waits for the device after each round alone

    @property
    def total(self) -> int:
        """All steps."""
        return self.warm_up + self.rounds * self.steps


FULL, SMALL = Plan(warm_up=4, rounds=6, steps=4), Plan(warm_up=1, rounds=2, steps=1)


@dataclass
class Stopwatch:
    """Takes the time of rounds of steps; `lap` is called after the warm-up and after each round, when all is done."""

    plan: Plan
    began: float = field(default_factory=time.perf_counter)
    laps: list[float] = field(default_factory=list)  # seconds since `began`
    first_s: float = 0.0  # until the end of the first step

    def is_due(self, step: int) -> bool:
        """Whether the host waits for the device after this step."""
        return step >= self.plan.warm_up and (step - self.plan.warm_up) % self.plan.steps == 0

    def end_step(self, step: int, device: torch.device) -> None:
        """See the end of a step, 1 for the first."""
        if step == 1:
            wait_for(device)
            self.first_s = time.perf_counter() - self.began
        if self.is_due(step):
            wait_for(device)
            self.laps.append(time.perf_counter() - self.began)

    def figures(self, tokens: int, flops_per_token: float, peak: float | None) -> dict[str, Any]:
        """Return tokens a second and MFU: the median over the rounds, and the slowest and fastest of them."""
        seconds = [(b - a) / self.plan.steps for a, b in zip(self.laps, self.laps[1:], strict=False)]
        rate = tokens / statistics.median(seconds)
        return {
            "tokens_per_s": rate,
            "slowest": tokens / max(seconds),
            "fastest": tokens / min(seconds),
            "step_ms": 1e3 * statistics.median(seconds),
            "first_step_s": self.first_s,
            "mfu": rate * flops_per_token / peak if peak else None,
        }


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def clean_device() -> Iterator[None]:
    """Begin with an empty device and no compiled graphs, so that contestants do not share anything."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


def memory_of(device: torch.device) -> dict[str, int]:
    """Return bytes of tensors now, between two steps, and at most since the device was clean; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "held_bytes": torch.cuda.memory_allocated(device),
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def seconds_of(call: Any, device: torch.device, *, repeats: int, calls: int) -> float:
    """Return the seconds of a call: the median over repeats of so many calls each, after one that does not count."""
    call()
    wait_for(device)
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait_for(device)
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found)
