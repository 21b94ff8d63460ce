"""Whether a run can fit at all: what it is known to hold, beside the memory that there is.

Holds the comparison before anything is allocated, and the words for memory that runs out later. What a rank will hold
is predicted by the strategies; how large a micro-batch may be is found in `micro_batches`.
"""

from __future__ import annotations

import errno
import re
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pretrain.distributed.world import World
from pretrain.errors import ResourceError
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.base import Memory, StrategyConfig
from pretrain.train.micro_batches import free_bytes
from pretrain.train.summary import ModelSize

CERTAIN = 0.9  # share of a prediction that a run holds for certain: predictions are right to a tenth
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_LIMITS = {"": "memory.max", "memory": "memory/memory.limit_in_bytes"}  # of cgroups, version 2 and 1, by controller
_RAN_OUT = re.compile(r"DefaultCPUAllocator|std::bad_alloc|[Cc]annot allocate memory|out of memory")
_LESS = "lower train.micro_batch_size, recompute (strategy.activation_checkpointing=full), or take a smaller model"


class Room(NamedTuple):
    """Memory that a rank may have at most."""

    size: int  # bytes
    of: str  # what sets the bound


def memory_with_room(size: ModelSize, cfg: Any, world: World) -> Memory:
    """Return what a rank will hold without a micro-batch, if it can: see `check_room`, which raises. A collective.

    `cfg` is a root configuration; read here: strategy, precision and optim.
    """
    memory = size.memory(cfg.strategy, ranks=world.size, precision=cfg.precision)
    check_room(memory, cfg.strategy, cfg.optim, world)
    return memory


def check_room(memory: Memory, strategy: StrategyConfig, optim: Any, world: World) -> None:
    """Raise `ResourceError` for weights, gradients and moments that cannot fit where the ranks run.

    Only for what is certain: activations come on top, and optimizers other than AdamW may hold half of its moments. A
    collective, before which no rank has allocated them; all ranks raise the same.
    """
    needed = int(CERTAIN * _certain(memory, optim))
    hosts = Counter(world.gather(socket.gethostname()))
    if world.device.type == "cuda":
        own = [] if strategy.offloads else [Room(free_bytes(world.device), "free on its GPU")]
    else:
        own = rooms(hosts[socket.gethostname()])
    least = min(own, default=None)
    answers = world.gather([socket.gethostname(), *least] if least and least.size < needed else None)
    for rank, answer in enumerate(answers):
        if answer:
            host, size, of = answer
            spread = "more ranks" if strategy.shards_weights else "strategy=fsdp2 or zero3 on more ranks"
            raise ResourceError(
                f"the model does not fit: a rank is predicted to hold {_bytes(needed)} of weights, gradients and "
                f"moments at least, and there are {_bytes(size)} for rank {rank} on host {host} ({of}); take a smaller "
                f"model (model.layers, model.width), {spread}, or a machine with more memory"
            )


def _certain(memory: Memory, optim: Any) -> float:
    moments = memory.optimizer if isinstance(optim, AdamWConfig) else memory.optimizer / 2
    return memory.weights + memory.gradients + moments


def rooms(ranks: int) -> list[Room]:
    """Return the bounds of this rank's memory on a CPU, where so many ranks share its host; unknown ones are left out.

    Swap space counts as memory: a run that needs it is slow, but it runs.
    """
    host = _meminfo()
    swap = host.get("SwapFree", 0)
    found = []
    if "MemAvailable" in host:
        found.append(Room((host["MemAvailable"] + swap) // ranks, f"a share of what its {ranks} ranks there can have"))
    found += [Room((limit + swap) // ranks, f"a share of {file}") for file, limit in _cgroup_limits()]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        pages = int((PROC / "self/statm").read_text(encoding="ascii").split()[0])
        found.append(Room(max(most - pages * resource.getpagesize(), 0), "left of RLIMIT_AS, ulimit -v"))
    return found


def _meminfo() -> dict[str, int]:
    """Return what the kernel says of the memory of this host, in bytes; nothing where it says nothing."""
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _cgroup_limits() -> Iterator[tuple[Path, int]]:
    """Yield the limits of memory of the control groups that this process is in, in bytes, with their files."""
    try:
        lines = (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, place in (line.split(":", 2) for line in lines):
        for controller, limit in _LIMITS.items():
            if controller not in controllers.split(","):
                continue
            top, name = CGROUPS / Path(limit).parent, Path(limit).name
            group = top / place.lstrip("/")
            for folder in (group, *(each for each in group.parents if each.is_relative_to(top))):
                try:
                    yield folder / name, int((folder / name).read_text(encoding="ascii"))
                except (OSError, ValueError):  # not there, or "max"
                    continue


@contextmanager
def memory_named(world: World) -> Iterator[None]:
    """While in here, turn the errors of memory that runs out into `ResourceError`s that say what helps."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        first = str(error).partition("\n")[0] or type(error).__name__
        where = f"rank {world.rank} on host {socket.gethostname()}"
        raise ResourceError(f"{where}: memory ran out ({first}); {_LESS}; the same command resumes") from error


def _ran_out(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _RAN_OUT.search(str(error)) is not None


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB ({size:,} bytes)"
