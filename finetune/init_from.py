"""The weights that fine-tuning starts from: all of a model, and what its head may take over from pretraining.

Holds how our tensors are named in the source; `pretrain.trained` finds and reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer

from finetune.answering.base import Codec
from finetune.from_nothing import Nothing
from finetune.model.adapters import taken_over
from finetune.model.lora import LoraLinear, is_adapter
from finetune.tasks.base import shortlist
from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.load import Shapes, check_architecture
from pretrain.checkpoint.low_rank import Summed
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.hub.config_json import shown
from pretrain.hub.family import head_for
from pretrain.hub.special_tokens import set_template
from pretrain.hub.task_heads import HeadKind
from pretrain.hub.weight_files import read_json
from pretrain.init_from import InitialWeights, SourceWeights
from pretrain.train.run_dir.record import choice_of
from pretrain.trained.adapted import AdaptedSource
from pretrain.trained.base import Source, Weights
from pretrain.trained.source import ReleasedSource, RunSource

_CLASSIFIER = "head.classifier."  # begins the names of its last layer's tensors, which have a row for each output

log = logging.getLogger(__name__)


def own_source(run: Path) -> RunSource:
    """Return what a run kept of its source when it started. Raises `ConfigError` if it is no run of fine-tuning."""
    source = RunSource(str(run), run)
    if not source.is_fine_tuned:
        raise ConfigError(f"run.name={run.name}: {run} is no run of fine-tuning; choose another run.name")
    return source


def tokenizer_of(source: Source | Nothing) -> Tokenizer:
    """Return a source's tokenizer, which puts around texts and pairs what its model has seen around them.

    Raises `ConfigError` for a tokenizer of another vocabulary.
    """
    if isinstance(source, AdaptedSource):
        return tokenizer_of(source.base)
    tokenizer = source.load_tokenizer()
    if isinstance(source, Nothing) or (isinstance(source, RunSource) and not source.is_fine_tuned):
        # Others keep the template in their tokenizer.json.
        set_template(tokenizer, source.template, source.network.token_types)
    return tokenizer


def codec_of(source: Source | Nothing) -> Codec:
    """Return how texts become ids for a source's model. Raises what `tokenizer_of` raises."""
    if isinstance(source, AdaptedSource):
        return codec_of(source.base)
    return Codec(
        tokenizer=tokenizer_of(source),
        kind=source.network.kind,
        frame=source.template or ([], []),
        start=source.decoder_start,
        chat_template=source.record.get("chat_template") if isinstance(source, RunSource) else None,
        target_tokenizer=None if isinstance(source, Nothing) else source.load_target_tokenizer(),
        rules=None if isinstance(source, Nothing) else source.rules,
    )


def weights_from(
    source: Source | Nothing,
    initial: InitialWeights,
    world: World,
    *,
    names: list[str],
    kind: HeadKind | None,
    adapters: Mapping[str, LoraLinear] = MappingProxyType({}),
    scratch: bool = False,
) -> Reader:
    """Return the weights to start from. A collective.

    All of the model comes from the source. Of the head, which makes predictions of a `kind` (None: there is no head),
    BERT's pooler and the transform before the vocabulary projection do if the source has them. From a source with a
    head of this kind all of its layers do, the last one if its outputs have the same `names`. The rest gets initial
    values; what does, and what is left behind, is logged. From `scratch` everything gets them. An adapter of peft goes
    on as the module's `adapters` if they are like it, else it is added to the matrices. Raises `CheckpointError`
    for a source that lacks part of the model.
    """
    if isinstance(source, Nothing):
        log.info("all weights get initial values: there is no init_from")
        return initial
    if scratch:
        log.info("all weights get initial values: of %s network and tokenizer alone are taken", source.path)
        return initial
    wanted = initial.shapes
    reader = _read(source, world, adapters)
    stored = reader.weight_shapes()
    log.info("starting from the weights of %s", source.path)
    goes_on = _head_goes_on(source, names, kind, stored)
    theirs = {name: _name_there(name, stored, goes_on=goes_on) for name in wanted}
    held = {name: shape for name, shape in wanted.items() if stored.get(theirs[name]) == shape}
    model = {name: shape for name, shape in wanted.items() if name.startswith("model.") and not is_adapter(name)}
    check_architecture(source.path, model, {name: stored[name] for name in model if name in stored})
    if new := [name for name in wanted if name not in held and not is_adapter(name)]:
        log.info("%s get initial values", ", ".join(new))
    if left := {_module(name) for name in stored} - {_module(theirs[name]) for name in held}:
        log.info("init_from: left behind of %s: %s", source.path, ", ".join(sorted(left)))
    return SourceWeights(reader, held, initial, theirs)


def _read(source: Source, world: World, adapters: Mapping[str, LoraLinear]) -> Weights:
    """Return the weights of a source, those of adapters that it was trained with among them or added."""
    if isinstance(source, AdaptedSource):
        return _with_adapter(source, _read(source.base, world, {}), adapters)
    if isinstance(source, RunSource) and source.is_fine_tuned:
        step = source.record.get("best_step")  # none where no step was measured: then the newest
        return choice_of(source.path, "tuning").merged(source.weights(world, step), source.network)
    return source.weights(world)


def _with_adapter(source: AdaptedSource, base: Weights, adapters: Mapping[str, LoraLinear]) -> Summed:
    """Return the weights of a base with an adapter, which is one of their tensors or added to the others."""
    differences, stored = source.adapter.differences, base.weight_shapes()
    own = {_name_in_head(name, stored): tensor for name, tensor in source.adapter.own.items()}
    tensors = taken_over(adapters, differences) if adapters else "tuning is not lora"
    if isinstance(tensors, dict):
        log.info("the adapters go on from those of %s", source.name)
        return Summed(base, {}, own | tensors)
    log.info("the adapter %s is added to the weights of %s, as %s", source.name, source.base.name, tensors)
    return Summed(base, {_name_in_head(name, stored): each for name, each in differences.items()}, own)


def _name_in_head(name: str, stored: Shapes) -> str:
    """Return what a tensor is called in a source that may have it in the head of a task."""
    in_head = f"head.{name.removeprefix('model.')}"
    return in_head if in_head in stored else name


def base_of(source: Source | Nothing, adapters: Mapping[str, LoraLinear], *, run: Path, scratch: bool) -> str | None:
    """Return the name of the weights over which the adapters of a `run` learn; None: they lie nowhere else."""
    if isinstance(source, RunSource) and source.path == run:
        return source.record.get("base")
    if isinstance(source, Nothing) or scratch or not adapters:
        return None
    if isinstance(source, AdaptedSource):
        goes_on = isinstance(taken_over(adapters, source.adapter.differences), dict)
        return source.base.name if goes_on else None
    return source.name


def _name_there(name: str, stored: Shapes, *, goes_on: bool) -> str:
    """Return what a source calls a tensor of ours, "" for the classifier of another head than ours."""
    if name.startswith(_CLASSIFIER):
        return name if goes_on else ""
    if name in stored:
        return name
    return name.replace("head.transform.", "model.transform.").removeprefix("head.")


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _head_goes_on(source: Source, names: list[str], kind: HeadKind | None, stored: Shapes) -> bool:
    """Return whether a source has a head whose outputs are those of ours, and log it if their kind is the same."""
    theirs = _outputs(source, kind, stored)
    if theirs is None:
        return False
    if other := _computes_otherwise(source, kind):
        log.info("init_from: the head of %s has %s, ours has not, so its classifier does not go on", source.path, other)
        return False
    if _same(theirs, names) or kind is HeadKind.span:
        log.info("init_from: the head of %s goes on, its outputs are the same: %s", source.path, shortlist(names))
        return True
    log.info("init_from: %s", f"the outputs of {source.path} are {shortlist(theirs)}, not {shortlist(names)}")
    if sorted(theirs) == sorted(names):
        log.info("init_from: with task.labels=[%s] its classifier would go on", ",".join(theirs))
    return False


def _outputs(source: Source, kind: HeadKind | None, stored: Shapes) -> list[str] | None:
    """Return the names of the outputs of a source's head, None without a head of this kind."""
    if kind is None or f"{_CLASSIFIER}weight" not in stored:
        return None
    if isinstance(source, RunSource):
        return source.record["names"] if choice_of(source.path, "task").answering.kind is kind else None
    if not isinstance(source, ReleasedSource) or source.task is not kind:
        return None
    named = read_json(source.path / "config.json").get("id2label")
    named = named if isinstance(named, dict) else {}
    return [str(named.get(str(row), f"LABEL_{row}")) for row in range(stored[f"{_CLASSIFIER}weight"][0])]


def _computes_otherwise(source: Source, kind: HeadKind | None) -> str:
    """Return the settings of a released head by which it computes what ours does not, "" for none."""
    if kind is None or not isinstance(source, ReleasedSource):
        return ""
    theirs, ours = read_json(source.path / "config.json"), head_for(source.network, kind).computes
    return ", ".join(f"{key}={shown(theirs[key])}" for key in ours if theirs.get(key, ours[key]) != ours[key])


def _same(theirs: list[str], ours: list[str]) -> bool:
    """Return whether outputs of these names are the same ones.

    What `transformers` writes where nobody named any, LABEL_0 and so on, says as much as integers, and of the only
    output of a regression nothing.
    """
    rows = range(len(theirs))
    if theirs == [f"LABEL_{row}" for row in rows] and ours == [str(row) for row in rows]:
        return True
    return theirs == ours or (theirs == ["LABEL_0"] and len(ours) == 1)
