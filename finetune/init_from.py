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
from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.load import Shapes, check_architecture
from pretrain.checkpoint.low_rank import Summed
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.hub.special_tokens import set_template
from pretrain.init_from import InitialWeights, SourceWeights
from pretrain.train.run_dir import choice_of
from pretrain.trained.adapted import AdaptedSource
from pretrain.trained.base import Source, Weights
from pretrain.trained.source import RunSource

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
        set_template(tokenizer, source.template, getattr(source.network, "token_types", 0))
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
    adapters: Mapping[str, LoraLinear] = MappingProxyType({}),
    scratch: bool = False,
) -> Reader:
    """Return the weights to start from. A collective.

    All of the model comes from the source. Of the head, BERT's pooler and the transform before the vocabulary
    projection do if the source has them, and all of it from a run of fine-tuning whose outputs have the same `names`;
    the rest gets initial values, which is logged. From `scratch` everything does. An adapter of peft goes on as the
    module's `adapters` if they are like it; else it is added to the matrices, which is logged. Raises `CheckpointError`
    for a source that lacks part of the model.
    """
    if isinstance(source, Nothing):
        log.info("all weights get initial values: there is no init_from")
        return initial
    if scratch:
        log.info("all weights get initial values: of %s network and tokenizer alone are taken", source.path)
        return initial
    wanted = initial.shapes
    if isinstance(source, AdaptedSource):
        reader, theirs = _read(source.base, world, wanted, names)
        reader = _with_adapter(source, reader, adapters)
    else:
        reader, theirs = _read(source, world, wanted, names)
    stored = reader.weight_shapes()
    held = {name: shape for name, shape in wanted.items() if stored.get(theirs[name]) == shape}
    model = {name: shape for name, shape in wanted.items() if name.startswith("model.") and not is_adapter(name)}
    check_architecture(source.path, model, {name: stored[name] for name in model if name in stored})
    log.info("starting from the weights of %s", source.path)
    if new := [name for name in wanted if name not in held and not is_adapter(name)]:
        log.info("%s get initial values", ", ".join(new))
    return SourceWeights(reader, held, initial, theirs)


def _read(source: Source, world: World, wanted: Shapes, names: list[str]) -> tuple[Weights, dict[str, str]]:
    """Return the weights of a source, and what each of the `wanted` tensors is called there; "": by no name."""
    if isinstance(source, RunSource) and source.is_fine_tuned:
        step = source.record.get("best_step")  # none where no step was measured: then the newest
        reader = choice_of(source.path, "tuning").merged(source.weights(world, step), source.network)
        same = source.record["names"] == names
        return reader, {name: name if same or "classifier" not in name else "" for name in wanted}
    theirs = {name: name.replace("head.transform.", "model.transform.").removeprefix("head.") for name in wanted}
    return source.weights(world), theirs


def _with_adapter(source: AdaptedSource, base: Weights, adapters: Mapping[str, LoraLinear]) -> Summed:
    """Return the weights of a base with an adapter, which is one of their tensors or added to the others."""
    adapter = source.adapter
    tensors = taken_over(adapters, adapter.differences) if adapters else "tuning is not lora"
    if isinstance(tensors, dict):
        log.info("the adapters go on from those of %s", source.name)
        return Summed(base, {}, adapter.own | tensors)
    log.info("the adapter %s is added to the weights of %s, as %s", source.name, source.base.name, tensors)
    return Summed(base, adapter.differences, adapter.own)


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
