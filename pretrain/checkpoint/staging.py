"""Private copies of fragments in host memory, so that training continues while they are written.

Holds the memory and the copying; when to copy, and what becomes of the copies, is decided in `save`.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import Fragment
from pretrain.errors import ResourceError

_ALIGNMENT = 64  # bytes: any type may be viewed there, and copies begin at cache lines


class Staging:
    """Host memory of one save, allocated at the first and used again by each that follows."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def copy(self, fragments: list[Fragment]) -> list[Fragment]:
        """Return the fragments as they are now, in memory that changes only with the next call.

        Waits for devices once, after the last copy. Raises `ResourceError` if there is no memory for them.
        """
        starts, end = [], 0
        for fragment in fragments:
            starts.append(end)
            end += -(-fragment.data.nbytes // _ALIGNMENT) * _ALIGNMENT
        on_gpu = any(fragment.data.is_cuda for fragment in fragments)
        if self._memory.numel() < end:
            self._memory = _allocate(end, pinned=on_gpu)
        staged = []
        for fragment, start in zip(fragments, starts, strict=True):
            data = fragment.data
            place = self._memory[start : start + data.nbytes].view(data.dtype).view(data.shape)
            staged.append(fragment._replace(data=place.copy_(data, non_blocking=True)))
        if on_gpu:
            torch.cuda.synchronize()
        return staged


def _allocate(size: int, *, pinned: bool) -> Tensor:
    """Return `size` bytes of host memory.

    They are pinned by registering them: torch's pinned allocator would round up to the next power of two.
    """
    try:
        memory = torch.empty(size, dtype=torch.uint8)
        if pinned:
            cudart: Any = torch.cuda.cudart()
            torch.cuda.check_error(int(cudart.cudaHostRegister(memory.data_ptr(), size, 0)))
            release = weakref.finalize(memory, cudart.cudaHostUnregister, memory.data_ptr())
            release.atexit = False  # CUDA may be gone by then, and the system frees what a process held
    except RuntimeError as error:
        raise ResourceError(
            f"checkpoint.asynchronous=true: no {size:,} bytes of host memory for this rank's copy ({error}); "
            "set it to false, or add ranks, which share the copy"
        ) from None
    return memory
