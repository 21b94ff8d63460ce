"""Hugging Face checkpoints: weights written as a stream, and read by slices.

Holds files and nothing of runs; `family` knows which tensor of theirs lies where in ours.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT, Reader
from pretrain.checkpoint.fragments import OpenFiles, bytes_of, header
from pretrain.checkpoint.load import check_architecture, first_few
from pretrain.errors import CheckpointError, ConfigError, NumericalError
from pretrain.files import write_hashed
from pretrain.hub.family import Family, HFTensor, Tensors, family_of
from pretrain.hub.task_heads import HeadKind, TaskHead
from pretrain.hub.weight_files import INDEX, WHOLE, StoredTensors, equal, locate, read_json

_CHUNK = 1 << 20  # elements read and written at a time
_AHEAD = 4  # chunks that may wait to be hashed
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # endings, and today's
_FLOATS = {"F64", "F32", "BF16", "F16"}  # types that weights have unless they are quantized

log = logging.getLogger(__name__)


def write_weights(
    directory: Path, parts: list[HFTensor], read: Reader, *, dtype: torch.dtype, max_bytes: int, whole: str = WHOLE
) -> None:
    """Write the tensors of a reader durably into one safetensors file, called `whole`, or several.

    A file holds at most `max_bytes`, unless one tensor alone has more. Held in memory at a time are some chunks of a
    tensor, or a whole one where it is transposed. Raises `NumericalError` for weights outside the range of fp16.
    """
    groups = _split(parts, max_bytes // dtype.itemsize)
    files = {
        whole if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }
    for name, group in files.items():
        head = header(((part.theirs, dtype, part.their_shape) for part in group), format="pt")
        chunks = (_buffer(part, chunk, dtype) for part in group for chunk in _chunks(part, read))
        write_hashed(directory / name, head, chunks, ahead=_AHEAD)
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(part.numel for part in parts) * dtype.itemsize},
            "weight_map": {part.theirs: name for name, group in files.items() for part in group},
        }
        write_hashed(directory / INDEX, json.dumps(index, indent=1).encode())


def _split(parts: list[HFTensor], max_elements: int) -> list[list[HFTensor]]:
    """Cut the list into runs of at most so many elements, at least one tensor each."""
    groups: list[list[HFTensor]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + part.numel > max_elements:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.numel
    return groups


def _chunks(part: HFTensor, read: Reader) -> Iterator[Tensor]:
    """Yield the elements of a tensor in the order of its file."""
    if part.transposed:
        yield read(part.ours, WEIGHT, part.start, part.numel).reshape(part.shape).T
        return
    columns = math.prod(part.shape[1:])
    for run in part.runs():
        end = (run.ours + run.rows) * columns
        for begin in range(run.ours * columns, end, _CHUNK):
            yield read(part.ours, WEIGHT, begin, min(_CHUNK, end - begin))


def _buffer(part: HFTensor, chunk: Tensor, dtype: torch.dtype) -> memoryview:
    converted = chunk.to(dtype)
    if dtype is torch.float16 and not converted.isfinite().all():
        raise NumericalError(f"{part.theirs}: holds values that are no finite fp16 numbers (65504 at most); use bf16")
    return bytes_of(converted)


class HuggingFaceWeights:
    """The weights of a Hugging Face directory under our names, read by slices; see `Reader` in `checkpoint.base`."""

    config: Any  # our model's, of the network whose weights these are
    task: HeadKind | None  # what its class has a head for, whose tensors are `head.*`; None: no task
    absent: list[str]  # names of heads' tensors that the checkpoint does not have

    def __init__(self, directory: Path, prefix: str = "model.") -> None:
        """Read names and shapes, not weights, unless tied ones are stored twice. Raises `CheckpointError` for files
        that are damaged or not of the architecture that `config.json` describes, and `ConfigError` for an architecture
        that we do not have.
        """
        self.directory = directory
        family, self.config, parts = read_network(directory / "config.json", prefix)
        tensors = family.tensors
        self.task = family.task_of(read_json(directory / "config.json"))
        head = family.heads.of(self.task) if self.task else None
        self._files = OpenFiles(directory)
        self._file_of = locate(directory, self._files)
        self._stored = self._by_current_names(parts, tensors, (head and head.prefix) or tensors.prefix)
        copies = self._without_copies(tensors.copies | (tensors.tied if self.config.tie_embeddings else {}))
        absent = _absent(parts, tensors.prefix, self._stored)
        self.absent = sorted({part.ours for part in absent})
        self._parts: dict[str, list[HFTensor]] = {}
        for part in [*parts, *self._parts_beside(parts, tensors, head)]:
            if part not in absent:
                self._parts.setdefault(part.ours, []).append(part)
        self._check(tensors)
        self._check_copies(copies, tensors)

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Return the shape of every weight by our name."""
        return {
            name: torch.Size((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
            for name, parts in self._parts.items()
        }

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self.weight_shapes()[name]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        out = torch.empty(numel, dtype=torch.float32)
        for part in self._parts[name]:
            columns = math.prod(part.shape[1:])
            for run in part.runs():
                begin = run.ours * columns
                low, high = max(start, begin), min(start + numel, begin + run.rows * columns)
                if low >= high:
                    continue
                first, last = (low - begin) // columns, -((begin - high) // columns)
                rows = self._rows(part, run.theirs + first, run.theirs + last).reshape(-1)
                skipped = low - begin - first * columns
                out[low - start : high - start] = rows[skipped : skipped + high - low]
        return out

    def _rows(self, part: HFTensor, first: int, last: int) -> Tensor:
        """Read rows [first, last) of a tensor of theirs, as ours lie."""
        stored = self._slice(part.theirs)
        if part.is_row:
            return stored[0, first:last]
        return stored[:, first:last].T if part.transposed else stored[first:last]

    def _by_current_names(self, parts: list[HFTensor], tensors: Tensors, prefix: str) -> dict[str, str]:
        """Return the name of every tensor in the files, where `prefix` may begin the body's, by its current name."""
        names = self._file_of
        body_alone = not any(name.startswith((prefix, tensors.prefix)) for name in names)
        outside = {part.theirs for part in parts} | tensors.tied.keys()
        heads = tuple(theirs for theirs in tensors.beside.values() if not theirs.startswith(tensors.prefix))
        stored: dict[str, str] = {}
        for name in names:
            current = name
            for old, new in _OLD_NAMES.items():
                current = current.removesuffix(old) + new if current.endswith(old) else current
            for other, own in tensors.other_names.items():
                current = own + current.removeprefix(other) if current.startswith(other) else current
            if prefix and current.startswith(prefix):
                current = tensors.prefix + current.removeprefix(prefix)
            if body_alone and current not in outside and not current.startswith(heads):
                current = tensors.prefix + current
            if (other := stored.setdefault(current, name)) != name:
                raise CheckpointError(f"{self.directory}: {other} and {name} are names of one tensor; leave out either")
        if not stored.keys() & outside and (wrapper := _wrapper(names, outside, tensors.prefix)):
            rule = f"the names of its tensors begin with {wrapper!r}, as a wrapper (DDP, torch.compile) has them"
            raise CheckpointError(f"{self.directory}: {rule}; save the module inside, or rename them")
        return stored

    def _without_copies(self, tied: dict[str, str]) -> list[tuple[str, str]]:
        """Let a tensor that is stored under the name of its copy alone have its own; return copies with what they copy.

        `transformers` reads either name too, and ties nothing where both are there and differ.
        """
        for copy, name in tied.items():
            if copy in self._stored and name not in self._stored:
                self._stored[name] = self._stored.pop(copy)
        return [(self._stored.pop(copy), name) for copy, name in tied.items() if copy in self._stored]

    def _check_copies(self, copies: list[tuple[str, str]], tensors: Tensors) -> None:
        """Refuse a stored copy that is none: what the network computes would depend on who reads it."""
        for copy, name in copies:
            if equal(self._open(copy), self._slice(name)):
                continue
            if tensors.tied.get(copy) == name:
                rule = f"{copy} and {name} differ, which config.json says are tied"
                fix = "leave out the one that is not meant, or untie them there (tie_word_embeddings) if both are"
            else:
                rule = f"{copy} and {name} differ, and our models have one for both"
                fix = "leave out the one that is not meant, or name another model if both are"
            raise CheckpointError(f"{self.directory}: {rule}; {fix}")

    def _parts_beside(self, parts: list[HFTensor], tensors: Tensors, head: TaskHead | None) -> Iterator[HFTensor]:
        """Yield the stored tensors beside `parts`: those that belong to objectives, and those of a task's head."""
        ours = {theirs: f"head.{name}" for name, theirs in head.names.items()} if head else {}
        ours |= {theirs: name for name, theirs in tensors.beside.items()}
        known = {part.theirs for part in parts}
        for name in self._stored:
            module, _, leaf = name.rpartition(".")
            if module in ours and name not in known:
                yield HFTensor(name, f"{ours[module]}.{leaf}", self._shape(name))

    def _check(self, tensors: Tensors) -> None:
        """Refuse tensors of the body that are missing, of another shape, or unknown; log heads of other tasks."""
        parts = {part.theirs: part for own in self._parts.values() for part in own}
        found, unused = {}, []
        for name, stored in self._stored.items():
            if name not in parts and name.endswith(tensors.derived):
                continue
            if name not in parts and (name.startswith(tensors.unused) or not name.startswith(tensors.prefix)):
                unused.append(stored)
            else:
                found[stored] = self._shape(name)
        wanted = {self._stored.get(name, name): torch.Size(part.their_shape) for name, part in parts.items()}
        check_architecture(self.directory, wanted, found, "its weights are not those that its config.json describes")
        if other := [f"{name} ({kind})" for name in parts if (kind := self._slice(name).get_dtype()) not in _FLOATS]:
            raise CheckpointError(f"{self.directory}: quantized weights are not read: {first_few(other)}")
        if unused:
            log.info("%s: no part of our model and left alone: %s", self.directory, ", ".join(sorted(unused)))

    def _shape(self, name: str) -> torch.Size:
        return torch.Size(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        """Return the slicer of a tensor by its current name in the family."""
        return self._open(self._stored[name])

    def _open(self, stored: str) -> Any:
        """Return the slicer of a tensor by its name in the files."""
        return self._files[self._file_of[stored]].get_slice(stored)


def _wrapper(names: Iterable[str], known: set[str], prefix: str) -> str:
    """Return what a wrapper such as DistributedDataParallel or torch.compile put before the names of a model."""
    ends = known | {name.removeprefix(prefix) for name in known}
    for name in names:
        parts = name.split(".")
        before = next((".".join(parts[:n]) for n in range(1, len(parts)) if ".".join(parts[n:]) in ends), "")
        if before:
            return f"{before}."
    return ""


def _absent(parts: list[HFTensor], prefix: str, stored: dict[str, str]) -> set[HFTensor]:
    """Return the tensors of head modules that a checkpoint lacks altogether: it is of another task, or of none."""
    modules = {name.rpartition(".")[0] for name in stored}
    head = (part for part in parts if not part.theirs.startswith(prefix))
    return {part for part in head if part.theirs.rpartition(".")[0] not in modules}


def read_network(path: Path, prefix: str = "model.") -> tuple[Family, Any, list[HFTensor]]:
    """Return the family, our configuration and the tensors of a `config.json`; every refusal names the file.

    The weights need not be there; where they are, some families look at what is stored.
    Raises `ConfigError` for an architecture that we do not have, `CheckpointError` for a damaged file.
    """
    theirs = read_json(path)
    try:
        family = family_of(theirs)
        config = family.as_stored(family.from_hf(theirs), StoredTensors(path.parent))
        return family, config, list(family.model_tensors(config, family.vocab_size(theirs), prefix))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
