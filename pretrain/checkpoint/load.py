"""Reading a run back: which step is valid, what it holds, and whether it fits a model.

Holds choosing, verifying and restoring steps; they are written by `save`.
"""

from __future__ import annotations

import logging
import math
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from pretrain.checkpoint.base import WEIGHT, Checkpointable, Reader
from pretrain.checkpoint.commit import FORMAT, MANIFEST_FILE, STATE_FILE, step_name, step_number
from pretrain.checkpoint.fragments import FragmentReader, Tensors
from pretrain.checkpoint.visibility import await_step, visible_steps
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError
from pretrain.files import OtherFormat, hash_file, read_json
from pretrain.models.base import materialize, named_tensors

log = logging.getLogger(__name__)

_SHOWN = 8  # problems in a message
_FILE = re.compile(r"[\w-][\w.-]*", re.ASCII)

Shapes = dict[str, torch.Size]
"""The whole shape of every tensor of a module by name, known before a strategy cuts them."""


class LaterFormat(CheckpointError):
    """A step that a later version of ours wrote."""


class Listed(TypedDict):
    """What the manifest of a step says of a file."""

    size: int  # bytes
    sha256: str


class StepManifest(TypedDict):
    """`manifest.json` of a step."""

    format: int
    step: int
    files: dict[str, Listed]
    tensors: Tensors


class _EveryState(TypedDict):
    step: int


class StepState(_EveryState, total=False):
    """`state.json` of a step, beside what its program adds."""

    strategy: dict[str, float]
    best: tuple[int, float] | None
    resume: dict[str, Any]  # what a resumed run must find unchanged
    facts: dict[str, Any]  # what run.json must say of the model, whoever reads it
    averaged: list[int]  # of a mean: the steps whose weights it is of. It has no moments


class _Restorable(_EveryState):
    strategy: dict[str, float]


Committed = Mapping[str, str]
"""Names of steps that a run committed -> SHA-256 of their manifests; steps of older versions are not among them."""


def newest_step(
    directory: Path, world: World, committed: Committed | None = None, *, from_elsewhere: bool = False
) -> Path | None:
    """Return the newest step whose every file verifies, None if there is none; what is skipped is logged.

    A collective: ranks share the hashing and choose the same step. `committed` are the steps that should be there, as
    rank 0 knows them. Raises `CheckpointError` if there are steps and all are damaged, or all are gone: starting over
    must not happen by itself. Also for a newer step of a later format, which another start would overwrite.

    What only some ranks see is waited for, see `visibility`; so is the newest of `committed` where rank 0 says that
    another host saved it (`from_elsewhere`).
    """
    [(known, elsewhere), *_] = world.gather((dict(committed or {}), from_elsewhere))  # so that all agree
    steps = visible_steps(directory, world, max(known, default="") if elsewhere else "")[::-1]
    for name in steps:
        await_step(directory / name, world)
        faults = [fault for fault in world.gather(_fault(directory / name, world, known)) if fault]
        words = _joined(faults)
        if any(later for _, later in faults):
            raise CheckpointError(f"{words}; move the step away to go on from the one before")
        if not faults:
            if world.is_first and (gone := sorted(other for other in known.keys() - {*steps} if other > name)):
                log.warning("checkpoint %s is gone; %s is the newest that is left", gone[-1], name)
            return directory / name
        if world.is_first:
            log.warning("checkpoint %s is skipped: %s", name, words)
    over = "restore one, or move the run directory away to start over from step 0"
    if steps:
        raise CheckpointError(f"{directory}: none of its {len(steps)} steps verifies (the log says why); {over}")
    if known:
        raise CheckpointError(f"{directory}: {max(known)} was saved there, and no step is left; {over}")
    return None


def saved_step(directory: Path, world: World, number: int | None = None, committed: Committed | None = None) -> Path:
    """Return the newest verified step, or that of a number. Raises `CheckpointError` if there is none. A collective."""
    if number is None:
        newest = newest_step(directory, world, committed)
        if newest is None:
            raise CheckpointError(f"{directory}: no step is saved there; train first, or longer than checkpoint.every")
        return newest
    step = directory / step_name(number)
    await_step(step, world)
    faults = [fault for fault in world.gather(_fault(step, world, committed or {})) if fault]
    if faults:
        raise CheckpointError(f"{step}: {_joined(faults)}; name another step, or none for the newest")
    return step


def _fault(step: Path, world: World, committed: Committed) -> tuple[str, bool] | None:
    """Return what is wrong with this rank's share of a step's files, and whether a later version wrote them."""
    try:
        manifest = load_manifest(step)
        if committed.get(step.name, found := hash_file(step / MANIFEST_FILE)) != found:
            return f"{MANIFEST_FILE}: not the one that the run committed, by its run.json", False
        FragmentReader(step, manifest["tensors"])
        for name, expected in sorted(manifest["files"].items())[world.rank :: world.size]:
            status = (step / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name}: no regular file", False
            if status.st_size != expected["size"]:
                return f"{name}: {status.st_size} bytes, the manifest says {expected['size']}", False
            if hash_file(step / name) != expected["sha256"]:
                return f"{name}: its SHA-256 is not the manifest's", False
        load_state(step)
    except (OSError, CheckpointError) as error:
        return str(error), isinstance(error, LaterFormat)
    return None


def _joined(faults: Iterable[tuple[str, bool]]) -> str:
    return "; ".join(dict.fromkeys(words for words, _ in faults))  # ranks may say the same


def load_manifest(step: Path) -> StepManifest:
    """Read the manifest of a committed step. Raises `CheckpointError` for one that is torn, foreign or hostile."""
    path = step / MANIFEST_FILE
    try:
        manifest = read_json(path, StepManifest, newest=FORMAT)
        entries = [entry for kinds in manifest["tensors"].values() for entry in kinds.values()]
        listed = {_checked(fragment)[0] for entry in entries for fragment in entry["fragments"]}
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: not there; this step was never committed") from None
    except OtherFormat as error:
        raise LaterFormat(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint manifest ({error})") from None
    if manifest["step"] != step_number(step):
        raise CheckpointError(f"{path}: of step {manifest['step']}, in a directory of another name")
    for name in {*manifest["files"], *listed}:
        if not _FILE.fullmatch(name) or name not in manifest["files"] or (step / name).is_symlink():
            raise CheckpointError(f"{path}: lists {name!r}; only regular files of the step's own directory are read")
    return manifest


def load_state(step: Path, kind: Any = StepState) -> dict[str, Any]:
    """Return the plain values saved beside the fragments. Raises `CheckpointError` for others than were saved there.

    `kind` is a TypedDict of those that the caller needs.
    """
    path = step / STATE_FILE
    try:
        state = read_json(path, kind)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not the state of a step ({error}); restore it, or name another step") from None
    if state["step"] != step_number(step) or not all(map(math.isfinite, state.get("strategy", {}).values())):
        raise CheckpointError(f"{path}: not the state of this step; restore it, or name another step")
    return state


def check_goes_on(step: Path, state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for a step that no run can go on from, since it is the mean of others."""
    if steps := state.get("averaged"):
        rule = f"the mean of the weights of {len(steps)} steps, without moments, from which no run goes on"
        raise CheckpointError(f"{step}: {rule}; begin one with these weights by init_from")


def fragments_of(step: Path) -> FragmentReader:
    """Return the tensors of a verified step. Raises `CheckpointError` for fragments that do not make up tensors."""
    return FragmentReader(step, load_manifest(step)["tensors"])


def _checked(fragment: Any) -> tuple[str, int, int]:
    """Return file, start and numel of a fragment. Raises `ValueError` for anything else."""
    match fragment:
        case [str(file), int(start), int(numel)]:
            return file, start, numel
    raise ValueError(f"{fragment!r} is no fragment")


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module's parameters and persistent buffers, tied ones once."""
    return {name: tensor.shape for name, tensor in named_tensors(module)}


def restore(step: Path, shapes: Shapes, strategy: Checkpointable) -> None:
    """Fill weights and moments from a verified step. Raises `CheckpointError` if it is of another architecture."""
    reader = fragments_of(step)
    check_architecture(step, shapes, reader.weight_shapes())
    check_goes_on(step, load_state(step))
    strategy.load_state(load_state(step, _Restorable)["strategy"])
    strategy.load_fragments(reader)


def restore_weights(step: Path, module: nn.Module) -> None:
    """Fill a whole module, in one process, from a step of any strategy at any world size.

    It may be on the meta device and is moved to the CPU, but not before its shapes are known to be those of the step.
    """
    reader = fragments_of(step)
    check_architecture(step, shapes_of(module), reader.weight_shapes())
    fill(module, reader)


def fill(module: nn.Module, reader: Reader, device: torch.device | None = None) -> None:
    """Move a module, which may be on the meta device, to `device` (None: the CPU) and fill it from a reader."""
    materialize(module, device or "cpu")
    for name, tensor in named_tensors(module):
        tensor.data.copy_(reader(name, WEIGHT, 0, tensor.numel()).reshape(tensor.shape))


def check_architecture(source: Path, wanted: Shapes, stored: Shapes, rule: str = "of another architecture") -> None:
    """Raise `CheckpointError` that lists the differences unless a checkpoint holds the tensors of a module."""
    differences = [f"missing {name} {tuple(wanted[name])}" for name in wanted.keys() - stored.keys()]
    differences += [f"extra {name} {tuple(stored[name])}" for name in stored.keys() - wanted.keys()]
    differences += [
        f"{name} is {tuple(stored[name])}, the model's {tuple(wanted[name])}"
        for name in wanted.keys() & stored.keys()
        if wanted[name] != stored[name]
    ]
    if differences:
        raise CheckpointError(f"{source}: {rule}, {len(differences)} tensors differ: {first_few(differences)}")


def first_few(problems: list[str]) -> str:
    """Return the first few problems in alphabetical order, as one line."""
    return "; ".join(sorted(problems)[:_SHOWN]) + (" ..." if len(problems) > _SHOWN else "")
