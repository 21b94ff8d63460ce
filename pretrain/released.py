"""Weights to start from: those of another run, or of a Hugging Face directory, without moments.

Holds what a run may start from and the refusal of what does not fit; how weights are read is the readers' own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint import Shapes, check_architecture, load_manifest, load_state, saved_step
from pretrain.distributed import World
from pretrain.errors import CheckpointError, ConfigError
from pretrain.fragments import FragmentReader
from pretrain.huggingface import HuggingFaceWeights
from pretrain.rundir import plain
from pretrain.strategy.base import WEIGHT, Reader

# Settings that change what the same weights compute. Some make another network of them; with the others a trained
# network may sensibly go on (a longer context wants another rope_theta), so that is only said.
_NETWORK = ("heads", "norm", "activation", "positions")
_TUNABLE = ("norm_eps", "rope_theta", "window", "global_every")

log = logging.getLogger(__name__)


class WeightsOnly:
    """A checkpoint without its moments, which begin at zero; see `Reader` in `strategy.base`."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._read.kinds(name)[WEIGHT]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        return self._read(name, kind, start, numel)


def starting_weights(source: Path, shapes: Shapes, model: Any, world: World) -> WeightsOnly:
    """Return the weights in `source`: of a run's newest verified step, or of a Hugging Face directory. A collective.

    `shapes` are those of the module that they are for, `model` is its configuration. Raises `ConfigError` for a
    directory that is neither, `CheckpointError` for one whose weights do not fit.
    """
    if (source / "config.json").is_file():
        reader = HuggingFaceWeights(source)
        settings = plain(reader.config)
    elif (source / "checkpoints").is_dir():
        step = saved_step(source / "checkpoints", world)
        reader = FragmentReader(step, load_manifest(step)["tensors"])
        settings = {key.removeprefix("model."): value for key, value in load_state(step)["resume"].items()}
    else:
        rule = "neither config.json (Hugging Face) nor checkpoints (a run) in it; name such a directory"
        raise ConfigError(f"init_from={source}: {rule}")
    check_architecture(source, shapes, reader.weight_shapes())
    _check_settings(source, settings, plain(model))
    return WeightsOnly(reader)


def _check_settings(source: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in _NETWORK + _TUNABLE:
        if theirs.get(key) != ours.get(key):
            difference = f"model.{key} is {ours.get(key)}, that of {source} {theirs.get(key)}"
            if key in _NETWORK:
                raise CheckpointError(f"{difference}; its weights mean nothing there, set model.{key} alike")
            log.warning("init_from: %s", difference)
