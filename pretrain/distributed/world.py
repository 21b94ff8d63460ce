"""The world of ranks: who we are, sums and small messages over all ranks.

Holds every collective that the framework calls by itself; gradients are reduced by the strategies.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from pretrain.distributed import environment
from pretrain.distributed.hang import Watch, device_limit
from pretrain.distributed.heartbeat import Progress
from pretrain.distributed.mismatch import compare_collectives, compared, mismatch_of
from pretrain.distributed.recorder import TRACE
from pretrain.distributed.rendezvous import connected, error_of_peers, meet
from pretrain.errors import ConfigError, check

TIMEOUT = timedelta(minutes=10)  # of a collective: longer than any save or evaluation step, far below an allocation

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's numbers of its parameters, mallopt(3)

log = logging.getLogger(__name__)


def world_size() -> int:
    """Return how many ranks torchrun started, 1 without torchrun; needs no process group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number among all ranks; needs no process group."""
    return int(os.environ.get("RANK", "0"))


def device_type() -> str:
    """Return where the ranks compute, "cuda" or "cpu"; needs no process group and starts nothing on a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name: torch.device | str | None) -> torch.device:
    """Return the device of a name, by default CUDA where there is one, else the CPU. Raises `ConfigError` without."""
    try:
        device = torch.device(name or device_type())
    except RuntimeError:
        raise ConfigError(f"device={name}: is none; name cpu, cuda or cuda:0") from None
    rule = "torch finds no CUDA device here; name cpu, or leave it out"
    check(device.type != "cuda" or torch.cuda.is_available(), "device", name, rule)
    return device


@dataclass(frozen=True)
class World:
    """This process among its peers. Its methods are collectives: every rank calls them, in the same order."""

    rank: int
    size: int
    device: torch.device  # where this rank computes
    progress: Progress = field(default_factory=Progress, compare=False, kw_only=True)  # what its heartbeats say

    @classmethod
    def alone(cls) -> World:
        """Return the world of a single process on the CPU."""
        return cls(rank=0, size=1, device=torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def sum_ints(self, *values: int) -> list[int]:
        """Return the sums over ranks, exact. Runs on the CPU: it does not wait for the device."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(summed)
        return summed.tolist()

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Return the sum of a small tensor over ranks, on its device."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, message: Any) -> list[Any]:
        """Return the messages of all ranks in rank order; a message is anything that JSON can hold."""
        if self.size == 1:
            return [message]
        own = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([own.numel()]))
        longest = max(int(length) for length in lengths)
        padded = torch.nn.functional.pad(own, (0, longest - own.numel()))
        messages = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(messages, padded)
        return [json.loads(bytes(text[: int(length)].tolist())) for text, length in zip(messages, lengths, strict=True)]

    def finish(self) -> None:
        """Wait until this rank's device has done what it was given; no collective."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def all_to_all(self, sent: Tensor, sizes_to: list[int], sizes_from: list[int]) -> Tensor:
        """Send each rank its elements of `sent` (elements,), in rank order; return those from all ranks, in rank order.

        A rank sends `sizes_to[r]` elements to rank r, and receives `sizes_from[r]` from it; itself is one of them.
        """
        if self.size == 1:
            return sent
        received = sent.new_empty(sum(sizes_from))
        dist.all_to_all_single(received, sent, sizes_from, sizes_to)
        return received

    def barrier(self) -> None:
        """Wait until every rank is here. Not for the device, where torch's own barrier would go: to the bound one."""
        self.sum_ints(0)


@contextmanager
def joined(
    timeout: timedelta = TIMEOUT,
    files: Path | None = None,
    on_end: Callable[[int], None] | None = None,
    *,
    heartbeat_s: float | None = None,
    debug: bool = False,
) -> Iterator[World]:
    """Join the process group that torchrun describes, for the rest of this process; one process alone needs none.

    Errors of collectives that are due to other ranks become `TimedOut` and `PeerLost`; all other errors pass through.
    A collective that takes longer than `timeout` is a hang, as is a rank that sends no heartbeat for `heartbeat_s`, if
    that is a limit; no thread may be able to report them: then the process ends here, with the same exit code and
    words, after `on_end` has had the code. What is known of a hang goes to `files`. With `debug` ranks
    that enter different collectives become `Mismatched`. A process alone, such as a notebook, may go on: what engines
    have left in it is taken away.
    """
    variables, excepthook = set(os.environ), sys.excepthook
    world, watch = World(rank=rank(), size=world_size(), device=_prepared_device(files)), None
    try:
        if world.size > 1:
            if debug:
                compare_collectives()
            _start_group(world, timeout)
            watch = Watch(
                connected(),
                world.rank,
                world.size,
                limit_s=timeout.total_seconds(),
                heartbeat_s=heartbeat_s,
                progress=world.progress,
                files=files,
                on_end=on_end,
            )
        yield world
        if world.device.type == "cuda" and world.size > 1:
            _end_nccl(world)
    except RuntimeError as error:
        reason = mismatch_of(error) or error_of_peers(error, world.rank, timeout.total_seconds())
        if reason is None:
            raise
        log.debug("the error behind it:", exc_info=error)  # in log.txt alone: it helps few
        if watch:
            reason = watch.explained(reason)
            watch.leave()
        raise reason from error
    finally:
        if watch:
            watch.close()
        if world.size == 1:
            if dist.is_initialized():  # a group that `ensure_group` made
                dist.destroy_process_group()
            sys.excepthook = excepthook
            for variable in os.environ.keys() - variables:
                del os.environ[variable]


def _prepared_device(files: Path | None) -> torch.device:
    """Prepare this process for its device and return that. Raises `ConfigError` for a rank that has none."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = device_type() == "cuda"
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    chosen = environment.prepare(on_gpu=on_gpu, trace=str(files / TRACE) if files else None)
    if on_gpu:
        rule = f"each rank takes one of the {torch.cuda.device_count()} CUDA devices here; start that many ranks"
        check(local_rank < torch.cuda.device_count(), "LOCAL_RANK", local_rank, rule)
        torch.cuda.set_device(device)
        chosen.append(environment.bind_to_node(pci_of(device)))
    else:
        keep_freed_memory()
    for choice in chosen:
        log.debug("%s=%s: %s", choice.name, choice.value, choice.reason)
    return device


def pci_of(device: torch.device) -> tuple[int, int, int]:
    """Return domain, bus and device of a GPU on the PCI bus."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks these
    return properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id


def _start_group(world: World, timeout: timedelta) -> None:
    """Start the group of all ranks. Raises what `meet` raises."""
    start = partial(dist.init_process_group, store=meet(world.rank, world.size), rank=world.rank, world_size=world.size)
    # Engines make more groups and name no limit: torch's own may be below ours, and NCCL's end by SIGABRT.
    distributed_c10d.default_pg_timeout = device_limit(timeout) if world.device.type == "cuda" else timeout
    if world.device.type == "cpu":
        start("gloo", timeout=timeout)
        return
    # Tensors choose the backend by where they are: small agreements over gloo never wait for the GPU. With its device
    # bound, NCCL connects here, where a fault of the network is easy to tell, and guesses no device later.
    start("cpu:gloo,cuda:nccl", timeout=device_limit(timeout), device_id=world.device)
    compared(_group()._get_backend(torch.device("cpu")))._set_default_timeout(timeout)


def _group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


_ended: list[dist.ProcessGroup] = []  # groups that are let go of with the process


def _end_nccl(world: World) -> None:
    """Let NCCL's communicators go, once all ranks have come to their end; else each of them warns.

    Not after an error: peers may be gone, and NCCL would wait for them. Gloo stays until the process ends. Its last
    owner may be DDP's reducer, which holds the interpreter's lock while it waits for gloo's threads, and one of these
    may wait for that lock to free a tensor: such runs hung when all was done (torch 2.13). So ranks without a GPU keep
    their group, and those with one keep what is left of it.
    """
    world.barrier()
    _ended.append(_group())
    dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Have memory that tensors gave back stay with the process, as torch's own allocator has it on a GPU.

    By default glibc returns it to the system, tensors above 32 MiB at once, and the next step faults every page in
    again. In return the process stays as large as it ever was, and steps of varying sizes fragment the heap (with
    glibc's own settings hardly less): `bench/README.md` has figures. Other C libraries keep their own settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def ensure_group(world: World) -> None:
    """Start a process group of one where there is none: engines that shard ask for a group even alone."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
