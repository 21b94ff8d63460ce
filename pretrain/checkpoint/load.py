"""Reading a run back: which step is valid, what it holds, and whether it fits a model.

Holds choosing, verifying and restoring steps; they are written by `save`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrain.checkpoint.base import WEIGHT, Checkpointable
from pretrain.checkpoint.commit import FORMAT, step_name, step_names
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError
from pretrain.files import hash_file
from pretrain.models.base import named_tensors

log = logging.getLogger(__name__)

_SHOWN = 8  # problems in a message

Shapes = dict[str, torch.Size]
"""The whole shape of every tensor of a module by name, known before a strategy cuts them."""


def newest_step(directory: Path, world: World) -> Path | None:
    """Return the newest step whose every file verifies, None if there is none; what is skipped is logged.

    A collective: ranks share the hashing and choose the same step. Raises `CheckpointError` if there are steps and all
    are damaged: starting over must not happen by itself.
    """
    [steps, *_] = world.gather(step_names(directory)[::-1])  # rank 0's view, so that all agree
    for name in steps:
        problems = [problem for problem in world.gather(_problem(directory / name, world)) if problem]
        if not problems:
            return directory / name
        if world.is_first:
            log.warning("checkpoint %s is skipped: %s", name, "; ".join(problems))
    if steps:
        raise CheckpointError(
            f"{directory}: none of its {len(steps)} steps verifies (the log says why); restore one, or move them away "
            "to start over from step 0"
        )
    return None


def saved_step(directory: Path, world: World, number: int | None = None) -> Path:
    """Return the newest verified step, or that of a number. Raises `CheckpointError` if there is none. A collective."""
    if number is None:
        newest = newest_step(directory, world)
        if newest is None:
            raise CheckpointError(f"{directory}: no step is saved there; train first, or longer than checkpoint.every")
        return newest
    step = directory / step_name(number)
    problems = [problem for problem in world.gather(_problem(step, world)) if problem]
    if problems:
        raise CheckpointError(f"{step}: {'; '.join(problems)}; name another step, or none for the newest")
    return step


def _problem(step: Path, world: World) -> str | None:
    """Return what is wrong with this rank's share of a step's files, None if nothing is."""
    try:
        files = sorted(load_manifest(step)["files"].items())
        for name, expected in files[world.rank :: world.size]:
            size = (step / name).stat().st_size
            if size != expected["size"]:
                return f"{name}: {size} bytes, the manifest says {expected['size']}"
            if hash_file(step / name) != expected["sha256"]:
                return f"{name}: its SHA-256 is not the manifest's"
    except (OSError, CheckpointError) as error:
        return str(error)
    return None


def load_manifest(step: Path) -> dict[str, Any]:
    """Read the manifest of a committed step. Raises `CheckpointError` for one that is torn, foreign or hostile."""
    path = step / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["format"]
        names = list(manifest["files"])
        listed = {
            fragment[0] for kinds in manifest["tensors"].values() for k in kinds.values() for fragment in k["fragments"]
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not there; this step was never committed") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: not a checkpoint manifest ({error})") from None
    if found != FORMAT:
        raise CheckpointError(f"{path}: format {found}; this version of Headwater reads format {FORMAT}")
    for name in {*names, *listed}:
        if Path(name).name != name or name not in names or (step / name).is_symlink():
            raise CheckpointError(f"{path}: lists {name!r}; only regular files of the step's own directory are read")
    return manifest


def load_state(step: Path) -> dict[str, Any]:
    """Return the plain values saved beside the fragments."""
    return json.loads((step / "state.json").read_bytes())


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module's parameters and persistent buffers, tied ones once."""
    return {name: tensor.shape for name, tensor in named_tensors(module)}


def restore(step: Path, shapes: Shapes, strategy: Checkpointable) -> None:
    """Fill weights and moments from a verified step. Raises `CheckpointError` if it is of another architecture."""
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    check_architecture(step, shapes, reader.weight_shapes())
    strategy.load_state(load_state(step)["strategy"])
    strategy.load_fragments(reader)


def restore_weights(step: Path, module: nn.Module) -> None:
    """Fill the weights of a whole module, in one process, from a step of any strategy at any world size."""
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    check_architecture(step, shapes_of(module), reader.weight_shapes())
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
