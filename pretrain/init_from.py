"""The first weights of a run: those of a trained model as far as they fit the new one, or a random draw.

Holds what of a source fits a new module; how a source is found and read is in `trained`, heads and adapters are
fine-tuning's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT, Reader
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import Shapes, check_architecture
from pretrain.data.packing import Packing
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.base import named_tensors
from pretrain.models.init import draw
from pretrain.models.rotary import RopeScaling, Scaling
from pretrain.objectives.base import Objective, ObjectiveConfig
from pretrain.registry import plain
from pretrain.tokenizer.base import load_tokenizer, num_ids
from pretrain.trained.adapted import below
from pretrain.trained.base import EMBEDDING, PAIRS, Source
from pretrain.trained.source import described_source, objective_for

_ROPE_SCALING = "model.rope_scaling"
# Settings that change what the same weights compute. A difference in the first group makes them another network; with
# the second a trained network may sensibly continue (a longer context wants another rope_theta), so a difference is
# only logged. Two files of one tokenizer may hash differently, hence its place there.
_NETWORK = tuple(
    f"model.{key}"
    for key in (
        *("heads", "norm", "order", "activation", "positions", "position_offset", "max_distance", "token_types"),
        *("attention_scale", "embedding_scale", "head_scale", "rotary_share", "qk_norm", "score_width"),
        *("buckets", "content_to_position", "position_to_content", "mup_base_width", "mup_base_head_width"),
    )
)
_TUNABLE = (
    *(
        f"model.{key}"
        for key in ("norm_eps", "rope_theta", "local_rope_theta", "window", "global_every", "global_first")
    ),
    *(f"{_ROPE_SCALING}.{key.name}" for key in fields(RopeScaling)),
    "tokenizer",
)
_MODEL = "model."  # prefix of the model's tensors; those of an objective come and go with it
_TRANSFORM, _HEAD = "model.transform.", "model.head."  # what only predicts tokens in an encoder
_VOCABULARY = (EMBEDDING, "model.head.weight", "model.head.bias", "model.logit_bias")  # one row per token

FOREIGN = 0.01  # share of the ids that may stand for other tokens: a few special ones are often renamed

log = logging.getLogger(__name__)


def settings_from(init_from: str) -> dict[str, Any]:
    """Return what a pretraining run takes over from a source besides its weights, by the dotted keys of its settings.

    `model`, `tokenizer` and `objective` are configurations, the others single values. Reads no weights. Raises what
    `described_source` raises.
    """
    source = described_source(init_from)
    return {
        "model": source.network,
        "tokenizer": source.tokenizer_config(),
        "objective": source.objective if _detects(source) else objective_for(source.network),
        **({} if source.network.kind.generates else {"data.packing": Packing.windows}),
        "data.seq_len": source.network.max_seq_len,
    }


def _detects(source: Source) -> bool:
    """Return whether a source was trained without a head that predicts tokens, which it had to learn first."""
    return not source.is_fine_tuned and not source.objective.predicts_tokens


class InitialWeights:
    """The randomly drawn first values of a module's tensors, without moments; a `Reader`.

    Every element is a function of seed, name and place, so each rank draws only what it holds.
    """

    def __init__(self, module: Objective, seed: int) -> None:
        """Note shapes and schemes while the module has its whole shapes, before a strategy takes it over."""
        self._tensors = {name: (tensor.shape, module.initial(name)) for name, tensor in named_tensors(module)}
        self._seed = seed

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The whole shape of every tensor, by name."""
        return {name: shape for name, (shape, _) in self._tensors.items()}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._tensors[name][0]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        shape, initial = self._tensors[name]
        return draw(initial, seed=self._seed, name=name, start=start, numel=numel, total=shape.numel())


class SourceWeights:
    """The weights of a source without its moments; a `Reader`.

    What the source lacks has initial values: whole tensors, rows of new tokens, elements past its end.
    """

    def __init__(self, source: Reader, held: Shapes, initial: Reader, names: Mapping[str, str] | None = None) -> None:
        """Read the tensors `held`, of the source's shapes, from the source; `names` maps ours to the source's."""
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


def weights_from(
    source: Source, initial: InitialWeights, settings: dict[str, Any], world: World, *, tokenizer: Path
) -> SourceWeights:
    """Return the first weights of a pretraining run that starts from a source. A collective.

    `initial` are the random weights of the run's module; `settings` are what the run is recognised by on resume, of
    which `model.*` and `tokenizer` (16 digits of its hash) count here; `tokenizer` is the run's file. Raises
    `CheckpointError` for weights that do not fit.

    Tensors of an objective, and a head that the source lacks, get initial values. Tensors with a row per token may have
    another number of rows: additional rows get initial values, and surplus rows are dropped if they lie beyond the ids
    of the source's own tokenizer.
    """
    reader = source.weights(world)
    theirs = source.settings(reader)
    base = below(reader)
    wanted, stored = initial.shapes, reader.weight_shapes()
    missing = {*base.absent} if isinstance(base, HuggingFaceWeights) else _head_beside(wanted, stored)
    surplus = _head_beside(stored, wanted)
    held = {
        name: shape
        for name, shape in stored.items()
        if wanted.get(name) == shape or (name.startswith(_MODEL) and name not in surplus)
    }
    new = [name for name in wanted if name not in held and (name in missing or not name.startswith(_MODEL))]
    adapted = {name: wanted[name] for name in new} | _resized(source.path, wanted, held)
    check_architecture(source.path, wanted, {**held, **adapted})
    _check_settings(source.path, theirs, settings)
    if theirs.get("tokenizer") != settings.get("tokenizer"):
        _check_ids(source.path, tokenizer)
    step = f", {base.step.name}" if isinstance(base, FragmentReader) else ""
    log.info("starting from the weights of %s%s", source.name, step)
    if new:
        log.info("init_from: %s has no %s; they get initial values", source.path, ", ".join(new))
    if left := stored.keys() - held.keys():
        log.info("init_from: left behind of %s, so not in exports either: %s", source.path, ", ".join(sorted(left)))
        if PAIRS in left:
            log.info("init_from: objective=masked_lm objective.sentences=nsp (BERT's) or sop would go on with them")
    return SourceWeights(reader, held, initial)


def warn_of_other_pairs(source: Source, objective: ObjectiveConfig) -> None:
    """Warn if an objective takes over the classifier of a run whose pairs were others, nsp or sop."""
    theirs, ours = (plain(each).get("sentences") for each in (source.objective, objective))
    if source.objective.pairs and objective.pairs and theirs != ours:
        rule = f"objective.sentences is {ours}, that of {source.name} {theirs}"
        log.warning("init_from: %s; what tells pairs apart begins with the answers to another question", rule)


def _head_beside(names: Collection[str], others: Collection[str]) -> set[str]:
    """Return the tensors by which an encoder of these names predicts tokens, if one of the other names does not."""
    if not any(name.startswith(_TRANSFORM) for name in names) or any(name.startswith(_TRANSFORM) for name in others):
        return set()
    return {name for name in names if name.startswith((_TRANSFORM, _HEAD))}


def _resized(source: Path, wanted: Shapes, stored: Shapes) -> Shapes:
    """Return the wanted shapes of tensors with a row per token whose number of rows differs from the source's."""
    resized = {
        name: wanted[name]
        for name in _VOCABULARY
        if name in wanted and name in stored and stored[name] != wanted[name] and stored[name][1:] == wanted[name][1:]
    }
    for name, shape in resized.items():
        rows, needed = stored[name][0], shape[0]
        if needed > rows:
            log.info("init_from: rows %d to %d of %s are new and get initial values", rows, needed - 1, name)
            continue
        file = source / "tokenizer.json"
        used = num_ids(load_tokenizer(file)) if file.is_file() else math.inf
        if needed < used:
            known = f"{used} of which its tokenizer.json uses"
            rule = known if used <= rows else "and no tokenizer.json says which of them are used"
            fix = f"tokens cannot be taken away; set tokenizer=file tokenizer.path={source}"
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
        rule = f"{len(other)} of {len(shared)} ids stand for other tokens than there, so its embeddings mean nothing"
        raise CheckpointError(f"init_from: {rule}; set tokenizer=file tokenizer.path={source}")
    if other:
        log.warning("init_from: %d of %d ids stand for other tokens than in %s", len(other), len(shared), source)


def _check_settings(source: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    theirs, ours = theirs | _rope_scaling(theirs), ours | _rope_scaling(ours)
    for key in _NETWORK + _TUNABLE:
        if theirs.get(key) != ours.get(key):
            difference = f"{key} is {ours.get(key)}, that of {source} {theirs.get(key)}"
            if key in _NETWORK:
                raise CheckpointError(f"{difference}; its weights mean nothing there, set {key} alike")
            log.warning("init_from: %s", difference)


def _rope_scaling(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary scaling, which are nested, by their dotted keys, as far as its kind uses them.

    Steps from before there was one have none.
    """
    values = settings.get(_ROPE_SCALING) or {"kind": Scaling.none.name}
    scaling = RopeScaling(**{**values, "kind": Scaling[values["kind"]]}).short()
    return {f"{_ROPE_SCALING}.{key}": value for key, value in plain(scaling).items()}
