"""Old `pytorch_model.bin` files, written anew as safetensors.

Holds the only code that unpickles, through torch's reader that admits tensors alone; all other code reads safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pretrain.checkpoint.load import first_few
from pretrain.errors import CheckpointError, ConfigError, check
from pretrain.files import replace_file
from pretrain.hub.family import FAMILIES
from pretrain.hub.weight_files import INDEX, read_index, read_json

_WHOLE, _OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def needs_import(directory: Path) -> bool:
    """Whether a directory has old files of weights, and no safetensors."""
    old = any((directory / name).is_file() for name in (_WHOLE, _OLD_INDEX))
    return old and not any(directory.glob("*.safetensors"))


def import_bin(directory: Path, model_type: str | None = None) -> list[Path]:
    """Write a safetensors file for each file of weights, complete `config.json`, and return what was written.

    Files so old that `config.json` does not name their architecture need `model_type`. A file is held in memory as a
    whole. Raises `ConfigError` for a directory without such files, or with safetensors, and `CheckpointError` for a
    file that is damaged or holds anything but named tensors.
    """
    config = _architecture(directory, model_type)
    weight_map = read_index(directory / _OLD_INDEX) if (directory / _OLD_INDEX).is_file() else {}
    files = sorted(set(weight_map.values())) or [_WHOLE]
    targets = {file: directory / _renamed(file) for file in files}
    for file, target in targets.items():
        if not (directory / file).is_file():
            raise ConfigError(f"{directory / file}: is not there; name a directory that holds it")
        if target.exists():
            raise ConfigError(f"{target}: exists, and nothing is replaced; start from it, or remove it")
    for file, target in targets.items():
        tensors = {  # copies: tied ones share memory, transposed ones have gaps
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in _load(directory / file).items()
        }
        if absent := [name for name, place in weight_map.items() if place == file and name not in tensors]:
            rule = f"lacks tensors that {_OLD_INDEX} lists: {first_few(absent)}"
            raise CheckpointError(f"{directory / file}: {rule}; fetch both again")
        replace_file(target, [save(tensors, metadata={"format": "pt"})])
    written = list(targets.values())
    if weight_map:
        index = {"metadata": {}, "weight_map": {name: _renamed(file) for name, file in weight_map.items()}}
        written.append(directory / INDEX)
        replace_file(written[-1], [json.dumps(index, indent=1).encode()])
    if config is not None:
        written.append(directory / "config.json")
        replace_file(written[-1], [json.dumps(config, indent=2).encode() + b"\n"])
    return written


def _architecture(directory: Path, model_type: str | None) -> dict[str, Any] | None:
    """Return a `config.json` that names its architecture, None if the one that is there does."""
    config = read_json(directory / "config.json")
    named = config.get("model_type")
    rule = f"config.json does not name its architecture; add --model-type, one of {', '.join(FAMILIES)}"
    check(bool(named) or model_type in FAMILIES, "--model-type", model_type, rule)
    check(
        not named or model_type in (None, named), "--model-type", model_type, f"config.json says {named}; leave it out"
    )
    return None if named else {**config, "model_type": model_type}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nothing more specific
        raise CheckpointError(
            f"{path}: not a file of tensors alone ({(str(error) or repr(error)).splitlines()[0]})"
        ) from None
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: holds a {type(tensors).__name__}, not tensors by name")
    if others := [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path}: holds more than tensors: {', '.join(others[:8])}")
    return tensors


def _renamed(file: str) -> str:
    return file.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
