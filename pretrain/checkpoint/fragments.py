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


class Index(TypedDict):
    """What the manifest needs to know of one fragment file."""

    file: str
    size: int  # bytes
    sha256: str
    fragments: list[tuple[str, str, list[int], str, int, int]]  # name, kind, whole shape, dtype, start, numel


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

    def __init__(self, step: Path, tensors: dict[str, dict[str, Any]]) -> None:
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
        out = torch.empty(numel, dtype=getattr(torch, entry["dtype"]))
        for file, begin, length in entry["fragments"]:
            low, high = max(start, begin), min(start + numel, begin + length)
            if low < high:
                piece = self.files[file].get_slice(_key(name, kind, begin))
                out[low - start : high - start] = piece[low - begin : high - begin]
        return out

    def _check_cover(self, name: str, kind: str, entry: dict[str, Any]) -> None:
        """Refuse a tensor whose fragments overlap or leave a gap."""
        end = 0
        for _, start, numel in sorted(entry["fragments"], key=lambda fragment: fragment[1:]):
            if start != end:
                raise CheckpointError(f"{self.step}: {kind} of {name} has a gap or overlap at element {end}")
            end = start + numel
        if end != math.prod(entry["shape"]):
            raise CheckpointError(f"{self.step}: {kind} of {name} ends at element {end} of {math.prod(entry['shape'])}")
