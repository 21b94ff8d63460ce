"""The C library's heap, as a process wants it that computes on the CPU.

Holds two settings of glibc (`mallopt(3)`); other C libraries keep their own.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's numbers of its parameters
_NEVER = -1


def keep_freed_memory() -> None:
    """Have memory that tensors gave back stay with the process, as torch's own allocator has it on a GPU.

    By itself glibc returns it to the system, tensors above 32 MiB at once, and the next step pays for every page anew.
    In return the process stays as large as it ever was. Steps of ever other sizes also fragment the heap, with glibc's
    own settings hardly less: `bench/README.md` has figures.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
