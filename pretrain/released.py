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
from pretrain.data.tokenizer import tokenizer_sha256
from pretrain.distributed import World
from pretrain.errors import CheckpointError, ConfigError
from pretrain.fragments import FragmentReader
from pretrain.huggingface import HuggingFaceWeights
from pretrain.rundir import plain
from pretrain.strategy.base import WEIGHT, Reader

# Settings that change what the same weights compute. Some make another network of them; with the others a trained
# network may sensibly go on (a longer context wants another rope_theta), so that is only said. Two files of one
# tokenizer may hash differently, so that is only said, too.
_NETWORK = ("model.heads", "model.norm", "model.activation", "model.positions")
_TUNABLE = ("model.norm_eps", "model.rope_theta", "model.window", "model.global_every", "tokenizer")

log = logging.getLogger(__name__)


class WeightsOnly:
    """A checkpoint without its moments, which begin at zero; see `Reader` in `strategy.base`."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._read.kinds(name)[WEIGHT]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        return self._read(name, kind, start, numel)


def starting_weights(source: Path, shapes: Shapes, settings: dict[str, Any], world: World) -> WeightsOnly:
    """Return the weights in `source`: of a run's newest verified step, or of a Hugging Face directory. A collective.

    `shapes` are those of the module that they are for; `settings` are what a run keeps to recognise itself: those of
    the model (`model.heads`) and the hash of the `tokenizer`, 16 digits. Raises `ConfigError` for a directory that is
    neither, `CheckpointError` for one whose weights do not fit.
    """
    if (source / "config.json").is_file():
        reader = HuggingFaceWeights(source)
        theirs = {f"model.{key}": value for key, value in plain(reader.config).items()}
        if (source / "tokenizer.json").is_file():
            theirs["tokenizer"] = tokenizer_sha256(source / "tokenizer.json")[:16]
    elif (source / "checkpoints").is_dir():
        step = saved_step(source / "checkpoints", world)
        reader = FragmentReader(step, load_manifest(step)["tensors"])
        theirs = load_state(step)["resume"]
    else:
        rule = "neither config.json (Hugging Face) nor checkpoints (a run) in it; name such a directory"
        raise ConfigError(f"init_from={source}: {rule}")
    check_architecture(source, shapes, reader.weight_shapes())
    _check_settings(source, theirs, settings)
    log.info("starting from the weights in %s", source)
    return WeightsOnly(reader)


def _check_settings(source: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in _NETWORK + _TUNABLE:
        if theirs.get(key) != ours.get(key):
            difference = f"{key} is {ours.get(key)}, that of {source} {theirs.get(key)}"
            if key in _NETWORK:
                raise CheckpointError(f"{difference}; its weights mean nothing there, set {key} alike")
            log.warning("init_from: %s", difference)
