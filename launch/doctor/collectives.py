"""Checks of the all-reduce that every step waits for: that its sums are right, and how fast they come.

Holds the measurement; what a bandwidth means for a run is left to the reader, unless no GPU should have it.
"""

from __future__ import annotations

import statistics
import time
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.doctor.base import PATIENCE, Check, Finding, Subject, graded, in_bytes
from pretrain.errors import NumericalError

SIZES = (1, 1021, 1_000_003)  # elements: uneven, so that no rank's share is like another's
DTYPES = {"cpu": [torch.int64, torch.float32], "cuda": [torch.int64, torch.float32, torch.bfloat16]}
TIMED_BYTES = {"cpu": (2**16, 2**20, 2**24), "cuda": (2**20, 2**24, 2**28)}  # small, middle, large
REPEATS = 5
BUDGET_S = 10.0  # after so many seconds no larger size is measured
SLOW_GPU = 1e9  # bytes/s of bus bandwidth; PCIe 3.0 has twelve times that


@cache
def _group(subject: Subject) -> dist.ProcessGroup | None:
    """Return the group of the ranks' devices; None is that of the CPUs. A collective, once."""
    if subject.device.type == "cpu":
        return None
    group = dist.new_group(backend="nccl", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # this rank is in it
    return group


def _all_reduce(tensor: Tensor, subject: Subject) -> None:
    dist.all_reduce(tensor, group=_group(subject))
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sums(subject: Subject) -> str:
    """Sum known values over all ranks. Raises `NumericalError` for the first sum that is wrong on this rank."""
    world, kinds, wrong = subject.world, DTYPES[subject.device.type], []
    if world.size == 1:
        return "one rank: nothing to sum"
    for dtype in kinds:
        for size in SIZES:
            own, expected = known_values(size, dtype, world.rank, world.size)
            found = own.to(subject.device)
            _all_reduce(found, subject)
            different = (found.cpu() != expected).nonzero().flatten().tolist()
            for at in different[:1]:
                example = f"element {at} is {found[at].item()}, expected {expected[at].item()}"
                wrong.append(f"{len(different):,} of {size:,} {_name(dtype)} are wrong: {example}")
    if wrong:
        fix = "exclude the host or device, and look at its network and memory; what is trained there cannot be trusted"
        raise NumericalError(f"{wrong[0]}; {fix}")
    sizes = ", ".join(f"{size:,}" for size in SIZES)
    return f"sums of {sizes} elements over all ranks are exact: {', '.join(map(_name, kinds))}"


def known_values(size: int, dtype: torch.dtype, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """Return what a rank contributes (size,) and the sum over all ranks, which every dtype holds exactly in any order.

    In bf16, where integers are exact up to 256 only, a single rank contributes to each element.
    """
    places = torch.arange(size)
    pattern = places % 5 + 1
    if dtype is torch.bfloat16:
        return (pattern * (places % ranks == rank)).to(dtype), pattern.to(dtype)
    return (pattern * (rank + 1)).to(dtype), (pattern * (ranks * (ranks + 1) // 2)).to(dtype)


def _times(subject: Subject) -> list[tuple[int, float]]:
    """Return bytes and median seconds of all-reduces in fp32, as this rank saw them."""
    world, found = subject.world, []
    start = time.monotonic()
    for size in TIMED_BYTES[subject.device.type] if world.size > 1 else ():
        if max(world.gather(time.monotonic() - start)) > BUDGET_S:  # all stop at the same size
            break
        tensor = torch.zeros(size // 4, device=subject.device)
        _all_reduce(tensor, subject)  # the first one connects
        times = []
        for _ in range(REPEATS):
            world.barrier()
            begin = time.perf_counter()
            _all_reduce(tensor, subject)
            times.append(time.perf_counter() - begin)
        found.append((size, statistics.median(times)))
    return found


def bandwidths(size: int, seconds: float, ranks: int) -> tuple[float, float]:
    """Return algorithm and bus bandwidth of an all-reduce of `size` bytes, in bytes/s.

    As nccl-tests defines them (doc/PERFORMANCE.md there): S/t, and S/t * 2(n-1)/n, which compares with the speed of the
    links for any number of ranks.
    """
    algorithm = size / seconds
    return algorithm, algorithm * 2 * (ranks - 1) / ranks


def _judge_times(subject: Subject, answers: list[list[Any]]) -> list[Finding]:
    measured, fastest = [], 0.0
    for rows in zip(*answers, strict=True):
        size, seconds = rows[0][0], max(each for _, each in rows)
        algorithm, bus = bandwidths(size, seconds, subject.world.size)
        fastest = max(fastest, bus)
        rates = f"{algorithm / 1e9:.2f} GB/s algorithm, {bus / 1e9:.2f} bus"
        measured.append(f"{in_bytes(size)} in {seconds * 1000:.2f} ms ({rates})")
    if not measured:  # one rank
        return []
    on_gpus = subject.device.type == "cuda"
    text = f"{'nccl' if on_gpus else 'gloo'}, fp32, on the slowest rank: {'; '.join(measured)}"
    fix = "; NCCL may go over slow sockets: look at NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME and NCCL_IB_HCA"
    return graded(text, warning=fix if on_gpus and fastest < SLOW_GPU else "")


CHECKS = [
    Check("all-reduce", _sums, needs_config=False),
    Check("bandwidth", _times, _judge_times, needs_config=False),
]
