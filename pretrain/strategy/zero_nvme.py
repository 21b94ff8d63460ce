"""ZeRO-Infinity (Rajbhandari et al. 2021): shards that lie in files on an NVMe disk while they are not used.

Holds how DeepSpeed 0.19 handles them under stage 3; settings are in `zero`, the verbs in `zero_engine`.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import ConfigError

log = logging.getLogger(__name__)


def load_async_io(deepspeed: Any, key: str) -> None:
    """Load DeepSpeed's operator that reads and writes the files, which is compiled for minutes at its first use.

    Raises `ConfigError`, which names the setting `key`, where it cannot be compiled.
    """
    builder = deepspeed.ops.op_builder.AsyncIOBuilder()
    rule = "needs DeepSpeed's async_io, which cannot be compiled here"
    if not builder.is_compatible():
        raise ConfigError(f"{key}=nvme: {rule}: there is no libaio; install libaio-dev, or set cpu")
    log.info("%s=nvme: DeepSpeed's async_io is loaded, and compiled for minutes if this is its first use", key)
    try:
        builder.load()
    except Exception as error:  # of a compiler that is missing, too old, or without CUDA's headers
        fix = "install libaio-dev, g++ and ninja, and with GPUs the CUDA toolkit, or set cpu"
        raise ConfigError(f"{key}=nvme: {rule} ({error}); {fix}") from None


def claim(folder: Path, rank: int) -> None:
    """Lock this rank's files in a folder until the process ends: runs that share them would spoil each other.

    Raises `ConfigError` if it cannot be written or another process holds them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Never closed; opened past the page cache, which not every file system can do, because DeepSpeed's files are.
        lock = os.open(folder / f"rank{rank}.lock", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError as error:
        rule = f"must be writable, on a file system with direct I/O ({error}); name another folder"
        raise ConfigError(f"strategy.nvme_path={folder}: {rule}") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: it may build a strategy again
    except OSError:
        rule = f"another run keeps the shards of its rank {rank} there; name another folder"
        raise ConfigError(f"strategy.nvme_path={folder}: {rule}") from None


def stored(zero: Any, shard: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a shard, its weights and moments, with those that are out mapped from their files.

    Pages are read when they are used and are the system's cache, not memory of the process. They are those that
    DeepSpeed wrote last: Linux drops the pages of what is written past its cache. The values stay until the next step.
    """
    swapper = getattr(zero, "optimizer_swapper", None)  # stages 1 and 2 know of none
    swapped = swapper.swap_params_info.get(shard.ds_id) if swapper else None  # pyright: ignore[reportAttributeAccessIssue]
    if swapped is None:
        return values
    files = {id(each.compute_tensor): each.swap_path for each in swapped.tensors}
    return {
        kind: torch.from_file(files[id(value)], size=swapped.numel(), dtype=torch.float32)
        if id(value) in files
        else value
        for kind, value in values.items()
    }


@contextmanager
def updated(zero: Any, group: int) -> Iterator[None]:
    """Have a shard and its moments in memory for the block; then the weights that compute follow, wherever they are."""
    swapped = zero._swappable_optimizer_subgroup(group)
    if swapped:
        zero._optimizer_states_and_gradient_swap_in(group)
    yield
    zero._reassign_or_swap_out_partitioned_parameters(group)
    if swapped:
        zero._optimizer_states_and_gradient_swap_out(group)
