"""The weights that fine-tuning starts from: a model's, and what its head may take over from pretraining.

Holds which of ours is which of theirs; the reading is `pretrain.released`'s.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Tokenizer

from finetune.entry import FINETUNE
from finetune.model.lora import Merged, is_adapter
from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import check_architecture, load_manifest, saved_step
from pretrain.compose import compose_run
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.hub.special_tokens import set_template
from pretrain.init_from import Source, is_released, open_source, place_of
from pretrain.initial import InitialWeights
from pretrain.registry import rebuilt
from pretrain.released import StartingWeights, open_weights
from pretrain.tokenizer.base import load_tokenizer
from pretrain.train.run_dir import read_record

NETWORK = "network"  # the entry of run.json that tells the model; runs of fine-tuning alone have it

log = logging.getLogger(__name__)


def beginning(init_from: str | None, run: Path) -> tuple[Source, Tokenizer]:
    """Return what is known of a source, and its tokenizer, which frames texts and pairs as its model has seen them.

    Without `init_from` it is what the run kept of its source when it began. A source may be a run of fine-tuning, too.
    Raises what `open_source` raises, and `ConfigError` for a `run` that is none of fine-tuning, and for a tokenizer of
    another vocabulary.
    """
    if init_from is None and NETWORK not in read_record(run):
        raise ConfigError(f"run.name={run.name}: {run} is no run of fine-tuning; choose another run.name")
    path = run if init_from is None else place_of(init_from)
    if init_from is None or _is_fine_tuned(path):
        source = _kept_source(path)
        return source, fitting_tokenizer(source.tokenizer, source.vocab_size)
    source = open_source(init_from)
    tokenizer = fitting_tokenizer(source.tokenizer, source.vocab_size)
    if not is_released(source.path) and source.frame is not None:
        set_template(tokenizer, source.frame, getattr(source.model, "token_types", 0))
    return source, tokenizer


def fitting_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    """Load a `tokenizer.json`. Raises `ConfigError` if the model's `vocab_size` has no row for one of its ids."""
    tokenizer = load_tokenizer(file)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        rule = f"it has ids up to {largest}, but the model's embedding {vocab_size} rows"
        raise ConfigError(
            f"{file}: of another vocabulary: {rule}; put the tokenizer that the model was trained with there"
        )
    return tokenizer


def _is_fine_tuned(source: Path) -> bool:
    return not is_released(source) and NETWORK in read_record(source)


def _kept_source(run: Path) -> Source:
    record = read_record(run)
    settings, (prefix, suffix) = dict(record[NETWORK]), record["document_frame"]
    return Source(
        path=run,
        model=rebuilt(settings.pop("choice"), settings),
        vocab_size=record["vocab_size"],
        tokenizer=run / "tokenizer.json",
        frame=(prefix, suffix),
        mask=record["mask"],
    )


def starting_weights(
    source: Source, initial: InitialWeights, world: World, *, names: list[str], scratch: bool = False
) -> Reader:
    """Return the weights to start from. A collective.

    All of the model comes from the source. Of the head, BERT's pooler and the transform before the vocabulary
    projection do where the source has them, and all of it from a run of fine-tuning whose outputs have the same
    `names`; the rest begins with initial values, and is said. From `scratch` everything does. Raises
    `CheckpointError` for a source that does not have all of the model.
    """
    if scratch:
        log.info("all weights begin with initial values: of %s network and tokenizer alone are taken", source.path)
        return initial
    wanted = initial.shapes
    if _is_fine_tuned(source.path):
        reader = _fine_tuned_weights(source.path, world)
        same = read_record(source.path)["names"] == names
        theirs = {name: name if same or "classifier" not in name else "" for name in wanted}
    else:
        reader, _ = open_weights(source.path, world)
        theirs = {name: _there(name) for name in wanted}
    stored = reader.weight_shapes()
    held = {name: shape for name, shape in wanted.items() if stored.get(theirs[name]) == shape}
    model = {name: shape for name, shape in wanted.items() if name.startswith("model.") and not is_adapter(name)}
    check_architecture(source.path, model, {name: stored[name] for name in model if name in stored})
    log.info("starting from the weights of %s", source.path)
    if new := [name for name in wanted if name not in held and not is_adapter(name)]:
        log.info("%s begin with initial values", ", ".join(new))

    return StartingWeights(reader, held, initial, theirs)


def _fine_tuned_weights(run: Path, world: World) -> FragmentReader | Merged:
    """Return the weights of a run of fine-tuning at its best step, or at the newest if it has not ended."""
    step = saved_step(run / "checkpoints", world, read_record(run).get("best_step"))
    return compose_run(run, FINETUNE).tuning.merged(FragmentReader(step, load_manifest(step)["tensors"]))


def _there(name: str) -> str:
    """Return what a pretrained checkpoint calls a tensor of ours."""
    if name.startswith("head.transform."):
        return f"model.{name.removeprefix('head.')}"
    return name.removeprefix("head.")
