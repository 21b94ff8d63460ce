"""The weights that fine-tuning starts from: a model's, and what its head may take over from pretraining.

Holds which of ours is which of theirs; the reading is `pretrain.released`'s.
"""

from __future__ import annotations

import logging

from tokenizers import Tokenizer

from pretrain.checkpoint import check_architecture
from pretrain.counterpart import frame
from pretrain.data.tokenizer import load_tokenizer
from pretrain.distributed import World
from pretrain.initial import InitialWeights
from pretrain.released import StartingWeights, open_weights
from pretrain.source import Source, is_released

log = logging.getLogger(__name__)


def framing_tokenizer(source: Source) -> Tokenizer:
    """Return a source's tokenizer, which puts around texts and pairs what its model has seen around them."""
    tokenizer = load_tokenizer(source.tokenizer)
    if not is_released(source.path) and source.frame is not None:
        frame(tokenizer, source.frame, getattr(source.model, "token_types", 0))
    return tokenizer


def starting_weights(source: Source, initial: InitialWeights, world: World) -> StartingWeights:
    """Return the weights to start from. A collective.

    All of the model comes from the source. Of the head, BERT's pooler and the transform before the vocabulary
    projection do where the source has them; the rest begins with initial values, and is said. Raises
    `CheckpointError` for a source that does not have all of the model.
    """
    reader, _ = open_weights(source.path, world)
    stored, wanted = reader.weight_shapes(), initial.shapes
    theirs = {name: _there(name) for name in wanted}
    held = {name: shape for name, shape in wanted.items() if stored.get(theirs[name]) == shape}
    model = {name: shape for name, shape in wanted.items() if name.startswith("model.")}
    check_architecture(source.path, model, {name: stored[name] for name in model if name in stored})
    log.info("starting from the weights of %s", source.path)
    if new := [name for name in wanted if name not in held]:
        log.info("%s begin with initial values", ", ".join(new))

    return StartingWeights(reader, held, initial, theirs)


def _there(name: str) -> str:
    """Return what a pretrained checkpoint calls a tensor of ours."""
    if name.startswith("head.transform."):
        return f"model.{name.removeprefix('head.')}"
    return name.removeprefix("head.")
