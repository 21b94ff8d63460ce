"""Checkpoints: named flat fragments, hashed and committed atomically, without pickle.

Holds saving, verifying, choosing and pruning. What a fragment is, and who owns it, is the strategy's business; the
bytes on disk are `fragments`'.

A committed step is a directory with one fragment file a rank, `state.json` and `manifest.json`:

    checkpoints/step-00001000/fragments-00000-of-00002.safetensors ...

Commit protocol: all ranks write into `.tmp-step-...`, hash the bytes as they go and fsync; then rank 0 writes the
manifest last, fsyncs the directory, renames it and fsyncs the parent. A step counts only when its manifest and the
files that it lists verify, so a kill at any moment leaves the step before it.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrain.distributed import World
from pretrain.durable import sync
from pretrain.errors import CheckpointError, ResourceError, check
from pretrain.fragments import FragmentReader, Index, hash_file, write_durably, write_fragments
from pretrain.models.base import named_tensors
from pretrain.strategy.base import WEIGHT, Strategy

FORMAT = 1
_STEP = re.compile(r"step-\d{8}")

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CheckpointConfig:
    """How often a run is saved, and how many steps stay on disk."""

    every: int = 1000  # optimizer steps; the last step is always saved
    keep: int = 2  # newest committed steps that stay; older ones are deleted after the next commit
    max_failures: int = 3  # saves in a row that may fail (a full disk, say) before the run stops with exit code 8

    def __post_init__(self) -> None:
        check(self.every >= 1, "checkpoint.every", self.every, "at least 1 optimizer step")
        check(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1, or nothing could be resumed")
        check(self.max_failures >= 1, "checkpoint.max_failures", self.max_failures, "at least 1")


class Checkpoints:
    """The committed steps of one run, under `directory`. Every method is a collective: all ranks call it."""

    def __init__(self, directory: Path, cfg: CheckpointConfig, world: World) -> None:
        self.directory = directory
        self.cfg = cfg
        self.world = world
        self.failures = 0
        if world.is_first:
            directory.mkdir(parents=True, exist_ok=True)
            for torn in directory.glob(".tmp-*"):
                shutil.rmtree(torn)
        world.barrier()

    def save(self, step: int, strategy: Strategy, state: dict[str, Any], *, required: bool = False) -> None:
        """Commit the strategy's weights and moments and `state` (plain values) as `step`.

        A failed write keeps the steps before it and lets training go on. Raises `ResourceError` after `max_failures`
        in a row, and at once for a step that is `required`: the last one, or that of a run which is asked to stop.
        """
        [nonce, *_] = self.world.gather(secrets.token_hex(4))
        temporary = self.directory / f".tmp-{_name(step)}-{nonce}"
        try:
            index = self._write_own(temporary, strategy)
            problem = None
        except OSError as error:
            index, problem = None, f"rank {self.world.rank}: {error}"
        answers = self.world.gather([index, problem])
        problems = [problem for _, problem in answers if problem]
        if self.world.is_first and not problems:
            try:
                self._commit(step, temporary, [index for index, _ in answers], {**state, "strategy": strategy.state()})
            except OSError as error:
                problems = [f"commit: {error}"]
        [problems, *_] = self.world.gather(problems)
        if problems:
            self._failed(step, temporary, problems, required)
        else:
            self.failures = 0
            self._prune(step)

    def _write_own(self, temporary: Path, strategy: Strategy) -> Index:
        temporary.mkdir(exist_ok=True)
        name = f"fragments-{self.world.rank:05d}-of-{self.world.size:05d}.safetensors"
        return write_fragments(temporary / name, strategy.fragments())

    def _commit(self, step: int, temporary: Path, indices: list[Index], state: dict[str, Any]) -> None:
        body = json.dumps({**state, "step": step}, indent=1).encode()
        digest = write_durably(temporary / "state.json", body)
        files = {"state.json": {"size": len(body), "sha256": digest}}
        files |= {index["file"]: {"size": index["size"], "sha256": index["sha256"]} for index in indices}
        tensors: dict[str, dict[str, Any]] = {}
        for index in indices:
            for name, kind, shape, dtype, start, numel in index["fragments"]:
                entry = tensors.setdefault(name, {}).setdefault(kind, {"shape": shape, "dtype": dtype, "fragments": []})
                entry["fragments"].append([index["file"], start, numel])
        manifest = {"format": FORMAT, "step": step, "files": files, "tensors": tensors}
        write_durably(temporary / "manifest.json", json.dumps(manifest).encode())
        sync(temporary)
        final = self.directory / _name(step)
        if final.exists():  # the same step, not verified or written again after a resume
            final.rename(temporary.with_name(f"{temporary.name}-replaced"))
        temporary.rename(final)
        sync(self.directory)
        shutil.rmtree(temporary.with_name(f"{temporary.name}-replaced"), ignore_errors=True)

    def _failed(self, step: int, temporary: Path, problems: list[str], required: bool) -> None:
        self.failures += 1
        if self.world.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
            log.warning("saving step %d failed (%s); the step before it stays", step, "; ".join(problems))
        if required or self.failures >= self.cfg.max_failures:
            raise ResourceError(
                f"{self.directory}: step {step} could not be saved ({problems[0]}), failure {self.failures} in a row; "
                "free space there and start the same command again: it resumes from the newest committed step"
            )

    def _prune(self, committed: int) -> None:
        """Delete old steps. A later one than the newest commit was passed over on resume, and counts for nothing."""
        if not self.world.is_first:
            return
        names = sorted(path.name for path in self.directory.glob("step-*") if _STEP.fullmatch(path.name))
        for name in [name for name in names if name <= _name(committed)][: -self.cfg.keep]:
            shutil.rmtree(self.directory / name, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def newest_step(directory: Path, world: World) -> Path | None:
    """Return the newest step whose every file verifies, None if there is none; what is passed over is said.

    A collective: ranks share the hashing and choose the same step. Raises `CheckpointError` if there are steps and all
    are damaged: beginning again must not happen by itself.
    """
    own = sorted((path.name for path in directory.glob("step-*") if _STEP.fullmatch(path.name)), reverse=True)
    [steps, *_] = world.gather(own)  # rank 0's view, so that all agree
    for name in steps:
        problems = [problem for problem in world.gather(_problem(directory / name, world)) if problem]
        if not problems:
            return directory / name
        if world.is_first:
            log.warning("checkpoint %s is passed over: %s", name, "; ".join(problems))
    if steps:
        raise CheckpointError(
            f"{directory}: none of its {len(steps)} steps verifies (the log says why); restore one, or move them away "
            "to begin again from step 0"
        )
    return None


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


Shapes = dict[str, torch.Size]
"""The whole shape of every tensor of a module by name, known before a strategy cuts them."""


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module's parameters and persistent buffers, tied ones once."""
    return {name: tensor.shape for name, tensor in named_tensors(module)}


def restore(step: Path, shapes: Shapes, strategy: Strategy) -> None:
    """Fill weights and moments from a verified step. Raises `CheckpointError` if it is of another architecture."""
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    _same_architecture(step, shapes, reader)
    strategy.load_state(load_state(step)["strategy"])
    strategy.load_fragments(reader)


def restore_weights(step: Path, module: nn.Module) -> None:
    """Fill the weights of a whole module, in one process, from a step of any strategy at any world size."""
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    _same_architecture(step, shapes_of(module), reader)
    for name, tensor in named_tensors(module):
        tensor.data.copy_(reader(name, WEIGHT, 0, tensor.numel()).reshape(tensor.shape))


def _same_architecture(step: Path, wanted: Shapes, reader: FragmentReader) -> None:
    stored = reader.weight_shapes()
    differences = [f"missing {name} {tuple(wanted[name])}" for name in wanted.keys() - stored.keys()]
    differences += [f"extra {name} {tuple(stored[name])}" for name in stored.keys() - wanted.keys()]
    differences += [
        f"{name} is {tuple(stored[name])}, the model's {tuple(wanted[name])}"
        for name in wanted.keys() & stored.keys()
        if wanted[name] != stored[name]
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:8]) + (" ..." if len(differences) > 8 else "")
        raise CheckpointError(f"{step}: of another architecture, {len(differences)} tensors differ: {shown}")
