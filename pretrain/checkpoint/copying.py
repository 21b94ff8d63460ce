"""A committed step as the first step of another run: its fragment files shared by hard links, its state anew.

Holds one step on its way from a directory to another one. Whether two runs may share it is for the caller to say, who
has verified it, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.checkpoint.commit import STATE_FILE, TEMPORARY, commit, step_name, sweep
from pretrain.checkpoint.fragments import Index
from pretrain.checkpoint.load import StepManifest, load_manifest
from pretrain.errors import CheckpointError
from pretrain.files import fsync_path

_BLOCK = 1 << 24  # bytes copied and hashed at a time


class Copied(NamedTuple):
    """How the fragment files of a step came into another directory."""

    step: Path  # its directory there
    linked: int  # files that share their bytes on disk with the first step
    copied: int  # bytes of the others
    refusal: str  # why these could not be linked; "" if all could


def copy_step(step: Path, directory: Path, state: Mapping[str, Any]) -> Copied:
    """Commit a verified step into another directory of steps, with `state` (plain values) beside its fragments.

    The fragments are hard links, which cost no space and outlive the first step. Where the file system makes none they
    are copied, and the bytes that are written hashed once more. Whatever moment a crash hits, the step is there whole
    or not at all; what a crash before has left goes first. Raises `CheckpointError` for a file that is not as its
    manifest says, or is gone meanwhile, and `OSError` as the system does.
    """
    manifest = load_manifest(step)
    directory.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    temporary = directory / f"{TEMPORARY}{step.name}-branch"
    temporary.mkdir()
    linked, copied, refusal = 0, 0, ""
    for index in _indices(manifest):
        source, target = step / index["file"], temporary / index["file"]
        try:
            os.link(source, target)
            linked += 1
        except FileNotFoundError:
            raise CheckpointError(
                f"{source}: deleted while it was copied; keep the step (checkpoint.keep_every)"
            ) from None
        except OSError as error:  # another file system, or one without links; or a file of somebody else
            refusal = str(error.strerror)
            copied += _copy(source, target, index["sha256"])
    commit(temporary, manifest["step"], json.dumps(dict(state), indent=1).encode(), _indices(manifest))
    return Copied(directory / step_name(manifest["step"]), linked, copied, refusal)


def _indices(manifest: StepManifest) -> list[Index]:
    """Return what each fragment file of a step holds, as whoever wrote the file said it."""
    indices = {
        name: Index(file=name, size=listed["size"], sha256=listed["sha256"], fragments=[])
        for name, listed in manifest["files"].items()
        if name != STATE_FILE
    }
    for name, kinds in manifest["tensors"].items():
        for kind, entry in kinds.items():
            for file, start, numel in entry["fragments"]:
                indices[file]["fragments"].append((name, kind, entry["shape"], entry["dtype"], start, numel))
    return list(indices.values())


def _copy(source: Path, target: Path, expected: str) -> int:
    """Copy a file onto the disk and return its bytes. Raises `CheckpointError` if its SHA-256 is not as expected."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(_BLOCK):
            digest.update(block)
            written.write(block)
        shutil.copymode(source, target)
    fsync_path(target)
    if digest.hexdigest() != expected:
        raise CheckpointError(f"{source}: its SHA-256 is not the manifest's; name another step")
    return target.stat().st_size
