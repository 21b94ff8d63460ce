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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FIX = "fetch or write it again"  # of a damaged file
_CHUNK = 1 << 20  # elements read and written at a time
_AHEAD = 4  # chunks that may wait to be hashed

log = logging.getLogger(__name__)


def write_weights(directory: Path, parts: list[HFTensor], read: Reader, *, dtype: torch.dtype, max_bytes: int) -> None:
    """Write the tensors of a reader durably into one safetensors file or several.

    A file holds at most `max_bytes`, unless one tensor alone has more. Held in memory at a time are some chunks of a
    tensor, or a whole one where it is transposed. Raises `NumericalError` for weights outside the range of fp16.
    """
    groups = _split(parts, max_bytes // dtype.itemsize)
    files = {
        _WHOLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
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
    for begin in range(part.start, part.start + part.numel, _CHUNK):
        yield read(part.ours, WEIGHT, begin, min(_CHUNK, part.start + part.numel - begin))


def _buffer(part: HFTensor, chunk: Tensor, dtype: torch.dtype) -> memoryview:
    converted = chunk.to(dtype)
    if dtype is torch.float16 and not converted.isfinite().all():
        raise NumericalError(f"{part.theirs}: holds values that are no finite fp16 numbers (65504 at most); use bf16")
    return bytes_of(converted)


class HuggingFaceWeights:
    """The weights of a Hugging Face directory under our names, read by slices; see `Reader` in `checkpoint.base`."""

    config: Any  # our model's, of the network whose weights these are
    absent: list[str]  # names of heads' tensors that the checkpoint does not have

    def __init__(self, directory: Path, prefix: str = "model.") -> None:
        """Read names and shapes, not weights. Raises `CheckpointError` for files that are damaged or not of the
        architecture that `config.json` describes, and `ConfigError` for an architecture that we do not have.
        """
        self.directory = directory
        family, self.config, parts = read_network(directory / "config.json", prefix)
        self._files = OpenFiles(directory)
        self._file_of = self._locate()
        self._stored = _by_current_names(self._file_of, parts, family.tensors)
        absent = _absent(parts, family.tensors.prefix, self._stored)
        self.absent = sorted({part.ours for part in absent})
        self._parts: dict[str, list[HFTensor]] = {}
        for part in [*parts, *self._parts_beside(family.tensors)]:
            if part not in absent:
                self._parts.setdefault(part.ours, []).append(part)
        self._check(family.tensors)

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
            low, high = max(start, part.start), min(start + numel, part.start + part.numel)
            if low >= high:
                continue
            columns = math.prod(part.shape[1:])
            first, last = (low - part.start) // columns, -((part.start - high) // columns)
            stored = self._slice(part.theirs)
            rows = (stored[:, first:last].T if part.transposed else stored[first:last]).reshape(-1)
            skipped = low - part.start - first * columns
            out[low - start : high - start] = rows[skipped : skipped + high - low]
        return out

    def _locate(self) -> dict[str, str]:
        """Return the file of every stored tensor."""
        index = self.directory / INDEX
        if not index.exists():
            if not (self.directory / _WHOLE).exists():
                rule = f"no {_WHOLE}; only safetensors are read, convert what is there"
                raise CheckpointError(f"{self.directory}: {rule}")
            return dict.fromkeys(self._files[_WHOLE].keys(), _WHOLE)
        located = read_index(index)
        held = {file: set(self._files[file].keys()) for file in set(located.values())}
        if absent := [f"{name} in {file}" for name, file in located.items() if name not in held[file]]:
            raise CheckpointError(f"{index}: lists tensors that are not there: {first_few(absent)}; {_FIX}")
        return located

    def _parts_beside(self, tensors: Tensors) -> Iterator[HFTensor]:
        """Yield the stored tensors that belong to objectives."""
        ours = {theirs: name for name, theirs in tensors.beside.items()}
        for name in self._stored:
            module, _, leaf = name.rpartition(".")
            if module in ours:
                yield HFTensor(name, f"{ours[module]}.{leaf}", self._shape(name))

    def _check(self, tensors: Tensors) -> None:
        """Refuse tensors of the body that are missing, of another shape, or unknown; log heads of other tasks."""
        parts = {part.theirs: part for own in self._parts.values() for part in own}
        known = tensors.repeated if self.config.tie_embeddings else ()
        found, unused = {}, []
        for name, stored in self._stored.items():
            if name not in parts and (name in known or name.endswith(tensors.derived)):
                continue
            if name not in parts and (name.startswith(tensors.unused) or not name.startswith(tensors.prefix)):
                unused.append(stored)
            else:
                found[stored] = self._shape(name)
        wanted = {self._stored.get(name, name): torch.Size(part.their_shape) for name, part in parts.items()}
        check_architecture(self.directory, wanted, found, "its weights are not those that its config.json describes")
        if unused:
            log.info("%s: no part of our model and left alone: %s", self.directory, ", ".join(sorted(unused)))

    def _shape(self, name: str) -> torch.Size:
        return torch.Size(self._slice(name).get_shape())

    def _slice(self, name: str) -> Any:
        """Return the slicer of a tensor by its current name in the family."""
        stored = self._stored[name]
        return self._files[self._file_of[stored]].get_slice(stored)


def _by_current_names(names: Iterable[str], parts: list[HFTensor], tensors: Tensors) -> dict[str, str]:
    """Return the name of every tensor in the files by its current name in the family."""
    body_alone = not any(name.startswith(tensors.prefix) for name in names)
    outside = {part.theirs for part in parts} | set(tensors.repeated)
    heads = tuple(theirs for theirs in tensors.beside.values() if not theirs.startswith(tensors.prefix))
    stored = {}
    for name in names:
        current = next((name.removesuffix(old) + new for old, new in tensors.older.items() if name.endswith(old)), name)
        in_body = body_alone and current not in outside and not current.startswith(heads)
        stored[tensors.prefix + current if in_body else current] = name
    return stored


def _absent(parts: list[HFTensor], prefix: str, stored: dict[str, str]) -> set[HFTensor]:
    """Return the tensors of head modules that a checkpoint lacks altogether: it is of another task, or of none."""
    modules = {name.rpartition(".")[0] for name in stored}
    head = (part for part in parts if not part.theirs.startswith(prefix))
    return {part for part in head if part.theirs.rpartition(".")[0] not in modules}


def read_network(path: Path, prefix: str = "model.") -> tuple[Family, Any, list[HFTensor]]:
    """Return the family, our configuration and the tensors of a `config.json`; every refusal names the file.

    Raises `ConfigError` for an architecture that we do not have, `CheckpointError` for a damaged file.
    """
    theirs = read_json(path)
    try:
        family = family_of(theirs)
        config = family.from_hf(theirs)
        return family, config, list(family.model_tensors(config, theirs["vocab_size"], prefix))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Values may be of any type and size, and the code that meets one first raises whatever it raises.
        raise CheckpointError(f"{path}: not that of a {theirs.get('model_type')} ({error!r}); {_FIX}") from None


def read_index(path: Path) -> dict[str, str]:
    """Return the file of every tensor that an index lists: a file beside it. Raises `CheckpointError` otherwise."""
    located = read_json(path).get("weight_map")
    if not isinstance(located, dict) or not all(isinstance(file, str) for file in located.values()):
        raise CheckpointError(f"{path}: has no weight_map from the names of tensors to those of files; {_FIX}")
    for file in sorted(set(located.values())):
        if Path(file).name != file or not (path.parent / file).is_file():
            raise CheckpointError(f"{path}: lists {file!r}, which is no file beside it; {_FIX}")
    return located


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `CheckpointError` for a file without one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_FIX}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object; {_FIX}")
    return content
