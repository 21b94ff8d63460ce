"""What of a process's surroundings Headwater sets before it computes: memory of the GPU, cores, records of hangs.

Holds every such value with its reason, in one place; the doctor shows them. A value of the user's own stays. The
threads of a rank come from the launcher (`launch/ranks`), which knows how many ranks share a machine, and what torch
prints from `commands`, which comes before torch is imported. Free of torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pretrain.commands import CPP_LOG_LEVEL

ALLOCATOR, OLD_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"  # torch reads both, the first by preference
RECORDER = "TORCH_FR_BUFFER_SIZE"
RECORDER_FILE = "TORCH_FR_DUMP_TEMP_FILE"
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
THREADS = "OMP_NUM_THREADS"

PCI, NODES = Path("/sys/bus/pci/devices"), Path("/sys/devices/system/node")


class Choice(NamedTuple):
    """One thing that is set, or left alone, around a process."""

    name: str
    value: str
    reason: str
    own: bool = False  # whether the value is the user's


def prepare(*, on_gpu: bool, trace: str | None = None) -> list[Choice]:
    """Set what the user has not set, before torch starts CUDA and the process groups; return all that is chosen.

    `trace` begins the names of the files of NCCL's flight recorder, in which torch keeps what led to a hang.
    """
    chosen = []
    if on_gpu:
        reason = "segments that grow: batches of varying sizes leave no holes between them"
        old = os.environ.get(OLD_ALLOCATOR)
        settled = Choice(OLD_ALLOCATOR, old, reason, own=True) if old and ALLOCATOR not in os.environ else None
        chosen.append(settled or _default(ALLOCATOR, "expandable_segments:True", reason))
        reason = "left alone: 1 would keep kernels of communication waiting behind those that compute (FSDP, DDP)"
        chosen.append(Choice(CONNECTIONS, os.environ.get(CONNECTIONS, "unset"), reason, own=CONNECTIONS in os.environ))
    chosen.append(_default(RECORDER, "2000", "the newest collectives are on record: a hang names its ranks"))
    if trace:
        chosen.append(_default(RECORDER_FILE, trace, "that record is kept in the run directory"))
    reason = "a rank that is gone is named in a line, not by the stack frames of whoever misses it"
    chosen.append(Choice(CPP_LOG_LEVEL, os.environ.get(CPP_LOG_LEVEL, "unset"), reason))
    reason = "of a rank for work on the CPU; launchers share the cores out"
    chosen.append(Choice(THREADS, os.environ.get(THREADS, "unset"), reason))
    return chosen


def _default(name: str, value: str, reason: str) -> Choice:
    own = name in os.environ
    return Choice(name, os.environ.setdefault(name, value), reason, own)


def bind_to_node(pci: tuple[int, int, int]) -> Choice:
    """Keep this process, and threads that it starts from now on, on the cores of its GPU's NUMA node.

    `pci` are domain, bus and device. Among the cores that the process may use: what Slurm, a container or `numactl`
    has chosen counts, and where none of these is near the GPU, or the machine does not say, all stays as it is.
    """
    allowed = os.sched_getaffinity(0)
    cores = f"{len(allowed)} cores"
    try:
        node = int((PCI / "{:04x}:{:02x}:{:02x}.0".format(*pci) / "numa_node").read_text(encoding="ascii"))
        of_node = (NODES / f"node{node}" / "cpulist").read_text(encoding="ascii") if node >= 0 else ""
        near = cores_of(of_node) & allowed
    except (OSError, ValueError):
        return Choice("cores", cores, "all stay: the machine does not say which are near the GPU")
    if not near:
        return Choice("cores", cores, "all stay: none that the process may use is near the GPU")
    if near != allowed:
        os.sched_setaffinity(0, near)
    return Choice("cores", f"{len(near)} of {len(allowed)}", f"on NUMA node {node}, as the GPU: the way to it is short")


def cores_of(text: str) -> set[int]:
    """Return the numbers in a list of cores as the kernel writes it, such as "0-3,8"."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)}
