"""The directories of steps: how one becomes valid all at once, and how old ones go.

Holds what one process does to a directory. Which ranks write what into it, and when they agree that all of it is
there, is decided in `save`.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from pretrain.checkpoint.fragments import Index
from pretrain.files import OtherFormat, fsync_path, read_json, remove, sealed, write_hashed

FORMAT = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
TEMPORARY = ".tmp-"  # how the name of a directory begins that is no step yet
_STEP = re.compile(r"step-\d{8}")

log = logging.getLogger(__name__)


def step_name(step: int) -> str:
    """Return the name of a step's directory."""
    return f"step-{step:08d}"


def step_number(step: Path) -> int:
    """Return the number of a step's directory, whose name `step_name` gave."""
    return int(step.name.removeprefix("step-"))


def step_names(directory: Path) -> list[str]:
    """Return the names of the steps in a directory, oldest first."""
    return sorted(path.name for path in directory.glob("step-*") if _STEP.fullmatch(path.name))


def commit(temporary: Path, step: int, state: bytes, indices: list[Index]) -> None:
    """Turn a directory that holds all fragment files, on disk, into the valid directory of a step beside it.

    The manifest comes last and the rename after it: whatever moment a crash hits, a reader finds the step whole or
    not at all. Raises `OSError` as the system does.
    """
    digest = write_hashed(temporary / STATE_FILE, state)
    files = {STATE_FILE: {"size": len(state), "sha256": digest}}
    files |= {index["file"]: {"size": index["size"], "sha256": index["sha256"]} for index in indices}
    tensors: dict[str, dict[str, Any]] = {}
    for index in indices:
        for name, kind, shape, dtype, start, numel in index["fragments"]:
            entry = tensors.setdefault(name, {}).setdefault(kind, {"shape": shape, "dtype": dtype, "fragments": []})
            entry["fragments"].append([index["file"], start, numel])
    manifest = {"format": FORMAT, "step": step, "files": files, "tensors": tensors}
    write_hashed(temporary / MANIFEST_FILE, sealed(manifest, indent=None))
    fsync_path(temporary)
    final = temporary.with_name(step_name(step))
    replaced = temporary.with_name(f"{temporary.name}-replaced")
    if final.exists():  # the same step, not verified or written again after a resume
        final.rename(replaced)
    temporary.rename(final)
    fsync_path(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def prune(directory: Path, committed: int, keep: int, best: int | None = None, milestones: int = 0) -> None:
    """Delete all but the newest steps, the best one and the multiples of `milestones` (0: there are none).

    None that a later version of ours wrote either. One after `committed` was passed over on resume, and counts for
    nothing.
    """
    for name in [name for name in step_names(directory) if name <= step_name(committed)][:-keep]:
        number = step_number(directory / name)
        stays = number == best or (milestones and number % milestones == 0)
        if not stays and not _is_of_later_format(directory / name):
            shutil.rmtree(directory / name, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Delete what saves that were killed have left in a directory; say what cannot be deleted."""
    for torn in directory.glob(f"{TEMPORARY}*"):
        try:
            remove(torn)
        except OSError as error:
            log.warning("%s, which a killed save left, cannot be deleted (%s); delete it by hand", torn, error)


def _is_of_later_format(step: Path) -> bool:
    try:
        read_json(step / MANIFEST_FILE, newest=FORMAT)
    except OtherFormat:
        return True
    except (OSError, ValueError):
        pass
    return False
