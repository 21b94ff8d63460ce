"""Which files of a Hugging Face directory hold its weights: those that `transformers` reads. And its JSON files.

Holds files and their names; what the tensors in them mean is in `weights`.
"""

from __future__ import annotations

import logging
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.fragments import OpenFiles
from pretrain.checkpoint.load import first_few
from pretrain.errors import CheckpointError
from pretrain.files import read_json as read_object

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CANDIDATES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
_ADAPTER = "adapter_config.json"
_FIX = "fetch or write it again"  # of a damaged file
_COMPARED = 1 << 20  # elements compared at a time
_POINTER = b"version https://git-lfs"  # begins what Git has in place of a file that it has not fetched

log = logging.getLogger(__name__)


def locate(directory: Path, files: OpenFiles, *, quiet: bool = False) -> dict[str, str]:
    """Return the file of every stored tensor; log the files that are left alone, unless `quiet`.

    As `transformers` does, read `model.safetensors`, else the files that the index lists, and all that is in them.
    Raises `CheckpointError` for files that are missing, damaged or at odds with the index, and for an adapter of PEFT:
    `transformers` puts it over the weights where `peft` is installed, and not where it is not.
    """
    if (directory / _ADAPTER).exists():
        fix = f"merge it (`merge_and_unload` and `save_pretrained`), or take {_ADAPTER} away to start without it"
        raise CheckpointError(f"{directory}: holds an adapter of PEFT, which is not read; {fix}")
    there = _candidates(directory)
    if not {WHOLE, INDEX} & set(there):
        raise CheckpointError(f"{directory}: no {WHOLE}; {_way_out(directory, there)}")
    listed = {} if WHOLE in there else read_index(directory / INDEX)
    read = sorted(set(listed.values())) or [WHOLE]
    file_of: dict[str, str] = {}
    for file in read:
        _check_fetched(directory / file)
        for name in files[file].keys():  # noqa: SIM118 - no dictionary
            if name in file_of:
                raise CheckpointError(f"{directory}: {name} is in {file_of[name]} and in {file}; {_FIX}")
            file_of[name] = file
    if absent := [f"{name} in {file}" for name, file in listed.items() if file_of.get(name) != file]:
        raise CheckpointError(f"{directory / INDEX}: lists tensors that are not there: {first_few(absent)}; {_FIX}")
    beside = [name for name in there if name not in read and not (listed and name == INDEX)]
    if beside and not quiet:
        chosen = INDEX if listed else WHOLE
        log.warning("%s: read %s, as transformers does, and not %s", directory, chosen, first_few(beside))
    return file_of


class StoredTensors:
    """The tensors of a directory by their names in its files, looked up when first asked for; none without files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = OpenFiles(directory)

    @cached_property
    def _file_of(self) -> dict[str, str]:
        there = {WHOLE, INDEX} & set(_candidates(self._directory))
        return locate(self._directory, self._files, quiet=True) if there else {}

    def __bool__(self) -> bool:
        return bool(self._file_of)

    def get(self, name: str) -> Any | None:
        """Return the slicer of a tensor, None for one that is not there. Raises what `locate` raises."""
        file = self._file_of.get(name)
        return None if file is None else self._files[file].get_slice(name)


def equal(ones: Any, others: Any) -> bool:
    """Whether two slicers are of the same tensor, of one dimension at least, as fp32 numbers."""
    shape = others.get_shape()
    rows = max(1, _COMPARED // math.prod(shape[1:]))
    return ones.get_shape() == shape and all(
        torch.equal(ones[begin : begin + rows].float(), others[begin : begin + rows].float())
        for begin in range(0, shape[0], rows)
    )


def _candidates(directory: Path) -> list[str]:
    return sorted(path.name for pattern in _CANDIDATES for path in directory.glob(pattern) if path.is_file())


def _way_out(directory: Path, there: list[str]) -> str:
    """Return what to do about a directory with these files, none of which `transformers` or we would read."""
    if shards := [name for name in there if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]:
        return f"{first_few(shards)} are parts of one, and {INDEX} says which; fetch it, too"
    if others := [name for name in there if name.endswith(".safetensors")]:
        return f"rename the one that is meant: {first_few(others)}"
    if there:
        return f"only safetensors are read, convert {first_few(there)} (python -m pretrain.import_bin {directory})"
    return "only safetensors are read; fetch them, or name the directory that holds them"


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
    _check_fetched(path)
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_FIX}") from None


def _check_fetched(path: Path) -> None:
    """Raise `CheckpointError` for a file that is empty, or Git LFS's note of where it is to be had."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_FIX}") from None
    if not begin:
        raise CheckpointError(f"{path}: is empty; {_FIX}")
    if begin == _POINTER:
        raise CheckpointError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` there")
