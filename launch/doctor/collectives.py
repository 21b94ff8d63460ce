"""Checks of the all-reduce that every step waits for: that its sums are right, and how fast they come.

Holds the measurement; what a rate means for a run is for the reader, but for one that no GPU should have.
"""

from __future__ import annotations

import statistics
import time
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.doctor.base import PATIENCE, Check, Finding, Level, Subject, in_bytes

SIZES = (1, 1021, 1_000_003)  # elements: uneven, so that no rank's part is like another's
DTYPES = {"cpu": [torch.int64, torch.float32], "cuda": [torch.int64, torch.float32, torch.bfloat16]}
TIMED_BYTES = {"cpu": (2**16, 2**20, 2**24), "cuda": (2**20, 2**24, 2**28)}  # small, middle, large
REPEATS = 5
BUDGET_S = 10.0  # after so many seconds no larger size begins
SLOW_GPU = 1e9  # bytes/s of bus bandwidth; PCIe 3.0 has twelve times that


@cache
def _group(subject: Subject) -> dist.ProcessGroup | None:
    """Return the group of the ranks' devices; None is that of the CPUs. A collective, once."""
    if subject.device.type == "cpu":
        return None
    group = dist.new_group(backend="nccl", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # this rank is in it
    return group


def _all_reduce(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    dist.all_reduce(tensor, group=group)
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _sums(subject: Subject) -> list[str]:
    """Return which sums of known values are wrong on this rank."""
    world, wrong = subject.world, []
    if world.size == 1:
        return []
    for dtype in DTYPES[subject.device.type]:
        for size in SIZES:
            own, expected = known_values(size, dtype, world.rank, world.size)
            found = own.to(subject.device)
            _all_reduce(found, _group(subject))
            different = (found.cpu() != expected).nonzero().flatten()
            if len(different):
                place = int(different[0])
                kind = str(dtype).removeprefix("torch.")
                what = f"element {place} is {found[place].item()}, expected {expected[place].item()}"
                wrong.append(f"{len(different):,} of {size:,} {kind} are wrong: {what}")
    return wrong


def known_values(size: int, dtype: torch.dtype, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """Return what a rank contributes (size,) and the sum over all, which every dtype holds exactly in any order.

    Of bf16, which knows integers up to 256 only, one rank alone contributes to each element.
    """
    places = torch.arange(size)
    pattern = places % 5 + 1
    if dtype is torch.bfloat16:
        return (pattern * (places % ranks == rank)).to(dtype), pattern.to(dtype)
    return (pattern * (rank + 1)).to(dtype), (pattern * (ranks * (ranks + 1) // 2)).to(dtype)


def _judge_sums(subject: Subject, answers: list[list[str]]) -> list[Finding]:
    if subject.world.size == 1:
        return [Finding("all-reduce", Level.ok, "one rank: nothing to sum")]
    bad = [number for number, wrong in enumerate(answers) if wrong]
    if bad:
        text = f"{answers[bad[0]][0]} (on {subject.named(bad)})"
        fix = "exclude the host or device, and look at its network and memory; what is trained there cannot be trusted"
        return [Finding("all-reduce", Level.failed, f"{text}; {fix}", 5)]
    kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES[subject.device.type])
    sizes = ", ".join(f"{size:,}" for size in SIZES)
    return [Finding("all-reduce", Level.ok, f"sums of {sizes} elements over all ranks are exact: {kinds}")]


def _times(subject: Subject) -> list[tuple[str, int, float]]:
    """Return dtype, bytes and median seconds of all-reduces, as this rank saw them."""
    world, found = subject.world, []
    if world.size == 1:
        return []
    start = time.monotonic()
    kinds = [torch.float32] if subject.device.type == "cpu" else [torch.float32, torch.bfloat16]
    for size in TIMED_BYTES[subject.device.type]:
        if max(world.gather(time.monotonic() - start)) > BUDGET_S:  # all stop at the same size
            break
        for dtype in kinds:
            tensor = torch.zeros(size // dtype.itemsize, dtype=dtype, device=subject.device)
            _all_reduce(tensor, _group(subject))  # connections are made by the first
            times = []
            for _ in range(REPEATS):
                world.barrier()
                begin = time.perf_counter()
                _all_reduce(tensor, _group(subject))
                times.append(time.perf_counter() - begin)
            found.append((str(dtype).removeprefix("torch."), size, statistics.median(times)))
    return found


def bandwidths(size: int, seconds: float, ranks: int) -> tuple[float, float]:
    """Return algorithm and bus bandwidth of an all-reduce of `size` bytes, in bytes/s.

    As nccl-tests defines them (doc/PERFORMANCE.md there): S/t, and S/t * 2(n-1)/n, which for any number of ranks
    compares with the speed of the links.
    """
    algorithm = size / seconds
    return algorithm, algorithm * 2 * (ranks - 1) / ranks


def _judge_times(subject: Subject, answers: list[list[Any]]) -> list[Finding]:
    ranks = subject.world.size
    if ranks == 1:
        return []
    told, fastest = [], 0.0
    for rows in zip(*answers, strict=True):
        dtype, size, _ = rows[0]
        seconds = max(each for _, _, each in rows)
        algorithm, bus = bandwidths(size, seconds, ranks)
        fastest = max(fastest, bus)
        rates = f"{algorithm / 1e9:.2f} GB/s algorithm, {bus / 1e9:.2f} bus"
        told.append(f"{in_bytes(size)} of {dtype} in {seconds * 1000:.2f} ms ({rates})")
    backend = "nccl" if subject.device.type == "cuda" else "gloo"
    text = f"{backend}, on the slowest rank: {'; '.join(told)}"
    if subject.device.type == "cuda" and fastest < SLOW_GPU:
        fix = "NCCL may go over slow sockets: look at NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME and NCCL_IB_HCA"
        return [Finding("bandwidth", Level.warning, f"{text}; {fix}")]
    return [Finding("bandwidth", Level.ok, text)]


CHECKS = [
    Check("all-reduce", _sums, _judge_sums, needs_config=False),
    Check("bandwidth", _times, _judge_times, needs_config=False),
]
