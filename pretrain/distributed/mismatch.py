"""Ranks that entered different collectives: torch's own check of every one of them, and its errors in our words.

Holds `run.debug_collectives`. Without it such ranks wait for one another until a limit, or exchange what does not
belong together. With it torch compares before each collective, over gloo, what the ranks are about to do: number,
operation, shape and type (`ProcessGroupWrapper`). It cannot tell one too many that looks like the next one; then the
ranks that are left over in the end are named as those that wait in vain.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from pretrain.distributed.rendezvous import listed
from pretrain.errors import Mismatched

_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_BEGUN = re.compile(
    r"Rank \d+ is running collective: CollectiveFingerPrint\(SequenceNumber=(\d+),? ?OpType=(\w+)"
    r"(?:, TensorShape=(\[[\d, ]*\]), TensorDtypes=(\w+))?"
)
_POLL_S = 0.1


def compare_collectives() -> None:
    """Have torch compare the collectives of all groups that are made from now on."""
    c10d.set_debug_level(c10d.DebugLevel.DETAIL)


def compared(backend: Any) -> Any:
    """Return the backend of a group behind torch's comparison, or the backend itself if nothing is compared."""
    return backend.wrapped_pg if isinstance(backend, c10d._ProcessGroupWrapper) else backend


@contextmanager
def ddp_built() -> Iterator[None]:
    """Let torch's DDP be built behind the comparison.

    DDP notes for its own log how gloo was set up, and takes the comparison for gloo: a segmentation fault (torch 2.13).
    """
    if c10d.get_debug_level() != c10d.DebugLevel.DETAIL:
        yield
        return
    module: Any = torch.distributed
    logger, module.Logger = module.Logger, _SilentLogger
    try:
        yield
    finally:
        module.Logger = logger


_Logger: Any = c10d.Logger


class _SilentLogger(_Logger):
    """A logger of DDP that does not note how DDP was built."""

    def set_construction_data_and_log(self, *_: Any) -> None: ...


def mismatch_of(error: RuntimeError) -> Mismatched | None:
    """Return what this rank had begun, and where, if an error says that others had begun something else; else None.

    torch's words of other ranks are left out: they are wrong where the tensors have other numbers of dimensions.
    """
    if (own := _BEGUN.search(str(error))) is None:
        return None
    number, operation, shape, dtype = own.groups()
    tensor = f" of {dtype} {shape}" if shape else ""
    return Mismatched(f"began collective {number}, {operation}{tensor}, at {_caller(error.__traceback__)}")


def told(store: Store, rank: int, size: int, own: Mismatched, seconds: float) -> str:
    """Exchange over the store what each rank had begun, and return it, ranks that say the same together.

    All ranks call this at once; those that have said nothing after so many seconds are missing.
    """
    keys = [f"begun/{number}" for number in range(size)]
    store.set(keys[rank], str(own))
    deadline = time.monotonic() + seconds
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    ranks: dict[str, list[str]] = {}
    for number, key in enumerate(keys):
        if store.check([key]):
            ranks.setdefault(store.get(key).decode(), []).append(str(number))
    said = "; ".join(f"{listed(numbers)} {words}" for words, numbers in ranks.items())
    return f"different collectives: {said}; all ranks must call the same ones in the same order"


def _caller(trace: TracebackType | None) -> str:
    """Return the place in a traceback that called a collective: the last one outside of torch and of this package."""
    place = "an unknown place"
    while trace:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "?")
        path = Path(code.co_filename)
        if not path.is_relative_to(_TORCH) and path.parent != _HERE and path.name != "contextlib.py":
            place = f"{module}, line {trace.tb_lineno}, in {code.co_name}"
        trace = trace.tb_next
    return place
