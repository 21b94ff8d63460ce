"""The weights that fine-tuning starts from: all of a model, and what its head may take over from pretraining.

Holds how our tensors are named in the source; `pretrain.trained` finds and reads it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Tokenizer

from finetune.answering.base import Codec
from finetune.from_nothing import Nothing
from finetune.model.lora import is_adapter
from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.load import check_architecture
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.hub.special_tokens import set_template
from pretrain.init_from import InitialWeights, SourceWeights
from pretrain.train.run_dir import choice_of
from pretrain.trained.source import RunSource, Source

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
    tokenizer = source.load_tokenizer()
    if isinstance(source, Nothing) or (isinstance(source, RunSource) and not source.is_fine_tuned):
        # Others keep the template in their tokenizer.json.
        set_template(tokenizer, source.template, getattr(source.network, "token_types", 0))
    return tokenizer


def codec_of(source: Source | Nothing) -> Codec:
    """Return how texts become ids for a source's model. Raises what `tokenizer_of` raises."""
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
    source: Source | Nothing, initial: InitialWeights, world: World, *, names: list[str], scratch: bool = False
) -> Reader:
    """Return the weights to start from. A collective.

    All of the model comes from the source. Of the head, BERT's pooler and the transform before the vocabulary
    projection do if the source has them, and all of it from a run of fine-tuning whose outputs have the same `names`;
    the rest gets initial values, which is logged. From `scratch` everything does. Raises `CheckpointError` for a source
    that lacks part of the model.
    """
    if isinstance(source, Nothing):
        log.info("all weights get initial values: there is no init_from")
        return initial
    if scratch:
        log.info("all weights get initial values: of %s network and tokenizer alone are taken", source.path)
        return initial
    wanted = initial.shapes
    if isinstance(source, RunSource) and source.is_fine_tuned:
        step = source.record.get("best_step")  # none where no step was measured: then the newest
        reader = choice_of(source.path, "tuning").merged(source.weights(world, step))
        same = source.record["names"] == names
        theirs = {name: name if same or "classifier" not in name else "" for name in wanted}
    else:
        reader = source.weights(world)
        theirs = {name: name.replace("head.transform.", "model.transform.").removeprefix("head.") for name in wanted}
    stored = reader.weight_shapes()
    held = {name: shape for name, shape in wanted.items() if stored.get(theirs[name]) == shape}
    model = {name: shape for name, shape in wanted.items() if name.startswith("model.") and not is_adapter(name)}
    check_architecture(source.path, model, {name: stored[name] for name in model if name in stored})
    log.info("starting from the weights of %s", source.path)
    if new := [name for name in wanted if name not in held and not is_adapter(name)]:
        log.info("%s get initial values", ", ".join(new))
    return SourceWeights(reader, held, initial, theirs)
