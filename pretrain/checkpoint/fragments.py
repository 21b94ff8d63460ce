"""Fragment files, and what every safetensors file of ours has in common: streamed, hashed on the way, read by slices.

Holds bytes on disk and nothing of steps or ranks. The format is that of the safetensors library, which reads it
(https://github.com/huggingface/safetensors#format); its writer cannot hash or sync what it writes, so ours does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT, Fragment
from pretrain.errors import CheckpointError
from pretrain.files import write_hashed

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}


class Index(TypedDict):
    """What the manifest needs to know of one fragment file."""

    file: str
    size: int  # bytes
    sha256: str
    fragments: list[tuple[str, str, list[int], str, int, int]]  # name, kind, whole shape, dtype, start, numel


class Entry(TypedDict):
    """What the manifest says of one tensor of one kind."""

    shape: list[int]  # of the whole tensor
    dtype: str  # as in `torch.float32`
    fragments: list[Any]  # lists of file, start and numel


Tensors = dict[str, dict[str, Entry]]
"""Name of a tensor -> kind -> where its fragments are."""


def _key(name: str, kind: str, start: int) -> str:
    return f"{kind}/{name}/{start}"


def write_fragments(path: Path, fragments: Iterable[Fragment]) -> Index:
    """Write fragments as one safetensors file, durably, and return its index. Raises `OSError` as the system does."""
    kept = list(fragments)
    head = header((_key(f.name, f.kind, f.start), f.data.dtype, [f.data.numel()]) for f in kept)
    digest = write_hashed(path, head, (bytes_of(fragment.data) for fragment in kept))
    return Index(
        file=path.name,
        size=path.stat().st_size,
        sha256=digest,
        fragments=[
            (f.name, f.kind, list(f.shape), str(f.data.dtype).removeprefix("torch."), f.start, f.data.numel())
            for f in kept
        ],
    )


def header(tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], **metadata: str) -> bytes:
    """Return the head of a safetensors file of tensors (name, dtype, shape), whose bytes follow in this order."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def bytes_of(data: Tensor) -> memoryview:
    """Return the tensor's bytes as a buffer, copied only if it is not on the CPU or not contiguous."""
    array: Any = data.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    return memoryview(array)


class OpenFiles(dict[str, Any]):
    """The safetensors files of a directory by name, memory-mapped on first use."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def __missing__(self, file: str) -> Any:
        path = self._directory / file
        try:
            self[file] = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            rule = f"not a readable safetensors file ({error}); fetch or write it again"
            raise CheckpointError(f"{path}: {rule}") from None
        return self[file]


class FragmentReader:
    """The tensors of a committed step, read by name and run of elements; see `Reader` in `checkpoint.base`."""

    def __init__(self, step: Path, tensors: Tensors) -> None:
        """Note where fragments are. Raises `CheckpointError` for some that do not make up their tensor."""
        self.step = step
        self.tensors = tensors
        self.files = OpenFiles(step)
        for name, kinds in tensors.items():
            for kind, entry in kinds.items():
                self._check_cover(name, kind, entry)

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Return the shape of every stored weight and buffer by name."""
        return {name: torch.Size(kinds[WEIGHT]["shape"]) for name, kinds in self.tensors.items() if WEIGHT in kinds}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {kind: torch.Size(entry["shape"]) for kind, entry in self.tensors[name].items()}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        entry = self.tensors[name][kind]
        dtype = _BY_NAME[entry["dtype"]]
        pieces = []
        for file, begin, length in entry["fragments"]:
            low, high = max(start, begin), min(start + numel, begin + length)
            if low < high:
                pieces.append((low, high, begin, self._piece(file, _key(name, kind, begin), length, dtype)))
        out = torch.empty(numel, dtype=dtype)  # its size is that of files by now, not only of words in the manifest
        for low, high, begin, piece in pieces:
            out[low - start : high - start] = piece[low - begin : high - begin]
        return out

    def _piece(self, file: str, key: str, numel: int, dtype: torch.dtype) -> Any:
        """Return the slice of a fragment. Raises `CheckpointError` if the file holds another one, or none."""
        try:
            piece = self.files[file].get_slice(key)
        except SafetensorError as error:
            raise CheckpointError(f"{self.step / file}: no {key} ({error}); the manifest lists it") from None
        found, expected = (piece.get_dtype(), piece.get_shape()), (_DTYPES[dtype], [numel])
        if found != expected:
            raise CheckpointError(f"{self.step / file}: {key} is {found}, the manifest says {expected}")
        return piece

    def _check_cover(self, name: str, kind: str, entry: Entry) -> None:
        """Refuse a tensor of an unknown type, or whose fragments overlap or leave a gap."""
        if entry["dtype"] not in _BY_NAME:
            raise CheckpointError(f"{self.step}: {kind} of {name} is of type {entry['dtype']!r}, which none is")
        end = 0
        for _, start, numel in sorted(entry["fragments"], key=lambda fragment: fragment[1:]):
            if start != end or numel < 0:
                raise CheckpointError(f"{self.step}: {kind} of {name} has a gap or overlap at element {end}")
            end = start + numel
        if end != math.prod(entry["shape"]):
            raise CheckpointError(f"{self.step}: {kind} of {name} ends at element {end} of {math.prod(entry['shape'])}")
