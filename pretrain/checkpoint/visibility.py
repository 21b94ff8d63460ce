"""Steps that a network file system shows late: what one rank sees, the others will see, too.

Holds the waiting, which is bounded and ends on all ranks together; whether a step is valid is decided in `load`. A
client of NFS may keep what it knows of a directory for up to a minute, so that a step which another node renamed into
its place is missing there for that long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pretrain.checkpoint.commit import step_names
from pretrain.distributed.world import World

VISIBLE_S = 60.0  # seconds, at most: the default of NFS for directories
POLL_S = 0.2

log = logging.getLogger(__name__)


def visible_steps(directory: Path, world: World, recorded: str = "") -> list[str]:
    """Return the names of the steps that any rank sees, oldest first. A collective.

    If all are older than `recorded`, the newest one that another host says to have saved there, it is waited for.
    """
    steps = _seen_by_any(directory, world)
    if recorded and recorded > max(steps, default=""):
        _say(world, f"{directory}: {recorded}, which another host saved, is not there yet; waiting for it")
        _until((directory / recorded).is_dir, world, all_ranks=False)
        steps = _seen_by_any(directory, world)
    return steps


def await_step(step: Path, world: World) -> None:
    """Wait until every rank sees the files of a step that any rank sees, in their sizes. A collective.

    A file that no rank sees is not waited for. What is still missing after `VISIBLE_S` is for the caller to find.
    """
    listed = {name: size for files in world.gather(_files(step)) for name, size in files.items()}
    if _all(world, _files(step) == listed):
        return
    _say(world, f"{step}: not all ranks see it yet, or not all of it; waiting for a file system that shows it late")
    _until(lambda: listed.items() <= _files(step).items(), world)


def _seen_by_any(directory: Path, world: World) -> list[str]:
    return sorted({name for names in world.gather(step_names(directory)) for name in names})


def _files(step: Path) -> dict[str, int]:
    """Return the sizes of the files in a step's directory, in bytes; none without one."""
    try:
        return {path.name: path.lstat().st_size for path in step.iterdir()}
    except OSError:
        return {}


def _all(world: World, condition: bool) -> bool:
    [number] = world.sum_ints(int(condition))
    return number == world.size


def _until(seen: Callable[[], bool], world: World, *, all_ranks: bool = True) -> None:
    """Wait until all ranks see something, or any of them, or `VISIBLE_S` have passed on rank 0."""
    deadline = time.monotonic() + VISIBLE_S
    while True:
        seeing, late = world.sum_ints(int(seen()), int(world.is_first and time.monotonic() >= deadline))
        if seeing >= (world.size if all_ranks else 1) or late:
            return
        time.sleep(POLL_S)


def _say(world: World, text: str) -> None:
    if world.is_first:
        log.info("%s (%.0f s at most)", text, VISIBLE_S)
