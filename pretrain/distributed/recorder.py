"""torch's flight recorder: which collectives of this rank are under way, and the record that a hang leaves behind.

Holds every look into it; what follows from one is for `hang` and `stragglers` to say. Nothing here touches a device.
Where torch has no recorder, or the user has switched it off (TORCH_FR_BUFFER_SIZE=0), nothing is under way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch._C import _distributed_c10d as c10d

TRACE = "nccl_trace_rank_"  # name of the recorder's files, as torch.distributed.flight_recorder expects it

_NCCL: Callable[..., bytes] | None = getattr(c10d, "_dump_nccl_trace_json", None)
_GLOO: Callable[..., bytes] | None = getattr(c10d, "_dump_fr_trace_json", None)
_RECORD: Callable[..., bytes] | None = getattr(c10d, "_dump_nccl_trace", None) or getattr(c10d, "_dump_fr_trace", None)


def under_way() -> dict[str, int]:
    """Return the groups that have begun more collectives than have ended, with the number of the last that ended."""
    found = {}
    if _NCCL:
        found |= {f"nccl/{group}": ended for group, ended in _unfinished(_NCCL).items()}
    if _GLOO and (groups := _unfinished(_GLOO)):
        # Gloo's threads note the ends of collectives in any order, so that the last one noted need not be the last.
        entries = json.loads(_GLOO(includeCollectives=True, onlyActive=False)).get("entries", [])
        waiting = {str(entry["pg_id"]) for entry in entries if not entry["retired"]}
        found |= {f"gloo/{group}": ended for group, ended in groups.items() if group in waiting}
    return found


def seems_to_wait() -> bool:
    """Return whether a collective over gloo seems to be under way: for samples, in microseconds.

    After several that end together it may say so although none is, until the next one ends; see `under_way`.
    """
    return bool(_GLOO and _unfinished(_GLOO))


def keep_record(file: Path) -> None:
    """Write the record of the newest collectives, a pickle of torch's, if there is one. Raises `OSError`.

    Without the stacks of their callers: torch takes 3 to 10 s to name these, while other ranks wait for this one's end.
    """
    if _RECORD:
        file.write_bytes(_RECORD(includeStackTraces=False))


def _unfinished(dump: Callable[..., bytes]) -> dict[str, int]:
    status = json.loads(dump(includeCollectives=False, onlyActive=False)).get("pg_status", {})
    counts = {
        group: [int(numbers[f"last_{which}_collective"]) for which in ("enqueued", "completed")]
        for group, numbers in status.items()
    }
    return {group: ended for group, (begun, ended) in counts.items() if begun > ended}
