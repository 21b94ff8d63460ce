"""Weights to start from: those of another run, or of a Hugging Face checkpoint, without moments.

Holds the refusal of what does not fit; where a source is found is `source`'s, how weights are read the readers' own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT, Reader
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import Shapes, check_architecture, load_manifest, load_state, saved_step
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.init_from import is_released, open_released, place_of
from pretrain.initial import InitialWeights
from pretrain.tokenizer.base import load_tokenizer, tokenizer_sha256
from pretrain.train.run_dir import plain

# Settings that change what the same weights compute. Some make another network of them; with the others a trained
# network may sensibly go on (a longer context wants another rope_theta), so that is only said. Two files of one
# tokenizer may hash differently, so that is only said, too.
_NETWORK = tuple(
    f"model.{key}" for key in ("heads", "norm", "order", "activation", "positions", "position_offset", "token_types")
)
_TUNABLE = (
    *(f"model.{key}" for key in ("norm_eps", "rope_theta", "local_rope_theta", "window", "global_every")),
    "tokenizer",
)
_MODEL = "model."  # of names; tensors of objectives have others, and come and go with them
_VOCABULARY = ("model.embedding.weight", "model.head.weight", "model.head.bias")  # a row a token

FOREIGN = 0.01  # share of the ids that may stand for other tokens: a few special ones are often renamed

log = logging.getLogger(__name__)


class StartingWeights:
    """The weights of a source without its moments; see `Reader` in `strategy.base`.

    Elements beyond those of the source, rows of new tokens and tensors that it lacks, begin as in a run without one.
    """

    def __init__(self, source: Reader, held: Shapes, initial: Reader, names: Mapping[str, str] | None = None) -> None:
        """Read what is `held` by the source, of shapes there, from it; `names` are those it has for some of ours."""
        self._source, self._initial = source, initial
        self._names = names or {}
        self._held = {name: shape.numel() for name, shape in held.items()}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._initial.kinds(name)[WEIGHT]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        held = min(max(self._held.get(name, 0) - start, 0), numel)
        if not held:
            return self._initial(name, kind, start, numel)
        known = self._source(self._names.get(name, name), kind, start, held)
        if held == numel:
            return known
        return torch.cat([known, self._initial(name, kind, start + held, numel - held)])


def starting_weights(
    init_from: str, initial: InitialWeights, settings: dict[str, Any], world: World, *, tokenizer: Path
) -> StartingWeights:
    """Return the weights to start from: those of a run's newest verified step, or of a Hugging Face checkpoint.

    A collective. `init_from` is what `find_source` returned; that of rank 0 counts. `initial` are the weights of the
    module that they are for; `settings` are what a run keeps to recognise itself: those of the model (`model.heads`)
    and the hash of the `tokenizer`, 16 digits; `tokenizer` is its file. Raises `ConfigError` for what is neither, or
    not in the cache of the hub that this rank sees, `CheckpointError` for weights that do not fit.

    Tensors of an objective, and the head where a source has none, may be new. Tensors with a row a token may have
    another number of rows: rows of more tokens are new, and fewer are taken if what is left out are rows beyond the ids
    of the source's own tokenizer.
    """
    [init_from, *_] = world.gather(init_from)
    source = place_of(init_from)
    reader, theirs = open_weights(source, world)
    headless = reader.absent if isinstance(reader, HuggingFaceWeights) else []
    wanted, stored = initial.shapes, reader.weight_shapes()
    held = {name: shape for name, shape in stored.items() if name.startswith(_MODEL) or wanted.get(name) == shape}
    new = [name for name in wanted if name not in held and (name in headless or not name.startswith(_MODEL))]
    begun = {name: wanted[name] for name in new} | _resized(source, wanted, held)
    check_architecture(source, wanted, {**held, **begun})
    _check_settings(source, theirs, settings)
    if theirs.get("tokenizer") != settings.get("tokenizer"):
        _check_ids(source, tokenizer)
    log.info("starting from the weights of %s", init_from)
    if new:
        log.info("init_from: %s has no %s; they begin with initial values", source, ", ".join(new))
    if left := stored.keys() - held.keys():
        log.info("init_from: this run has no %s of %s", ", ".join(sorted(left)), source)
    return StartingWeights(reader, held, initial)


def open_weights(source: Path, world: World) -> tuple[HuggingFaceWeights | FragmentReader, dict[str, Any]]:
    """Return the weights of a source and the settings that they were trained with. A collective."""
    if is_released(source):
        reader = open_released(source)
        settings = {f"model.{key}": value for key, value in plain(reader.config).items()}
        if (source / "tokenizer.json").is_file():
            settings["tokenizer"] = tokenizer_sha256(source / "tokenizer.json")[:16]
        return reader, settings
    step = saved_step(source / "checkpoints", world)
    return FragmentReader(step, load_manifest(step)["tensors"]), load_state(step)["resume"]


def _resized(source: Path, wanted: Shapes, stored: Shapes) -> Shapes:
    """Return the shapes that tensors with a row a token take, where the source has another number of tokens."""
    resized = {
        name: wanted[name]
        for name in _VOCABULARY
        if name in wanted and name in stored and stored[name] != wanted[name] and stored[name][1:] == wanted[name][1:]
    }
    for name, shape in resized.items():
        rows, needed = stored[name][0], shape[0]
        if needed > rows:
            log.info("init_from: rows %d to %d of %s are new and begin with initial values", rows, needed - 1, name)
            continue
        used = _ids(source / "tokenizer.json")
        if needed < used:
            rule = (
                f"{used} of which its tokenizer.json uses"
                if used <= rows
                else "and no tokenizer.json says which it uses"
            )
            fix = f"tokens are not taken away; set tokenizer=file tokenizer.path={source}"
            raise CheckpointError(f"{source}: {name} has rows for {rows} tokens, {rule}, the model {needed}; {fix}")
        log.info("init_from: rows %d to %d of %s stand for no token and are left out", needed, rows - 1, name)
    return resized


def _check_ids(source: Path, own: Path) -> None:
    """Raise `CheckpointError` if many ids stand for other tokens than in the source: its embeddings are of those."""
    if not (source / "tokenizer.json").is_file():
        return
    theirs, ours = (
        {token: text for text, token in load_tokenizer(path).get_vocab(with_added_tokens=True).items()}
        for path in (source / "tokenizer.json", own)
    )
    shared = theirs.keys() & ours.keys()
    other = [token for token in sorted(shared) if theirs[token] != ours[token]]
    if len(other) > FOREIGN * len(shared):
        rule = (
            f"{len(other)} of {len(shared)} ids stand for other tokens than there, whose weights mean nothing for them"
        )
        raise CheckpointError(f"init_from: {rule}; set tokenizer=file tokenizer.path={source}")
    if other:
        log.warning("init_from: %d of %d ids stand for other tokens than in %s", len(other), len(shared), source)


def _ids(tokenizer: Path) -> float:
    """Return the largest id of a tokenizer, plus 1; infinity for a tokenizer that is not there."""
    if not tokenizer.is_file():
        return math.inf
    return max(load_tokenizer(tokenizer).get_vocab(with_added_tokens=True).values()) + 1


def _check_settings(source: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in _NETWORK + _TUNABLE:
        if theirs.get(key) != ours.get(key):
            difference = f"{key} is {ours.get(key)}, that of {source} {theirs.get(key)}"
            if key in _NETWORK:
                raise CheckpointError(f"{difference}; its weights mean nothing there, set {key} alike")
            log.warning("init_from: %s", difference)
