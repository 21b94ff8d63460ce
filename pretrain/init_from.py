"""What a run may start from: another run, a Hugging Face directory or a name on the hub, and what is known of it.

Holds places and facts; weights are `released`'s to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain.checkpoint.commit import step_names
from pretrain.compose import compose_run
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.hub.download import cached, fetch, is_hub_name
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.tokenizer.base import TokenizerConfig, describe, find_mask, load_tokenizer
from pretrain.tokenizer.file import TokenizerFile
from pretrain.train.run_dir import read_record


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is known of a trained model besides its weights."""

    path: Path  # directory of the run, or of the Hugging Face checkpoint
    model: Any  # our configuration of the network: a registered dataclass such as DecoderConfig or EncoderConfig
    vocab_size: int  # rows of the embedding: the ids of the tokenizer, and maybe some more for the sake of the hardware
    tokenizer: Path  # its tokenizer.json
    frame: tuple[list[int], list[int]] | None  # ids before and after a document; None: the tokenizer does not tell
    mask: int | None  # id that hides another token; None: the tokenizer has none


def find_source(init_from: str, *, first: bool) -> str:
    """Return what `init_from` names: the path of a run or of a Hugging Face directory, or `org/name@commit`.

    Of what is on the hub the `first` of all ranks learns the commit, and fetches it; the others return the name as it
    is. No collective, and but for the fetching a matter of milliseconds: it is asked before hours of preparation.
    Raises `ConfigError` for what is none of these, and for a network that our models are not; `CheckpointError` for
    damaged files and for a run without a saved step.
    """
    if is_hub_name(init_from):
        if not first:
            return init_from
        init_from = fetch(init_from)
    source = place_of(init_from)
    if is_released(source):
        open_released(source)
    elif not step_names(source / "checkpoints"):
        raise CheckpointError(f"init_from={init_from}: no step is saved there; name another, or train it first")
    return init_from


def open_source(init_from: str) -> Source:
    """Return what is known of a source; `init_from` is what `find_source` returned to the first rank.

    Reads names and shapes, no weights, and asks no hub. Raises `ConfigError` for what is no source, for one without
    a tokenizer.json and for damaged files of a run, `CheckpointError` for those of Hugging Face's.
    """
    path = place_of(init_from)
    file = path / "tokenizer.json"
    if not file.is_file():
        rule = "no tokenizer.json, which says what its ids stand for"
        fix = "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes it"
        raise ConfigError(f"init_from={init_from}: {rule}; name a directory that has one beside its weights, as {fix}")
    if is_released(path):
        weights = open_released(path)
        model, vocab_size = weights.config, weights.weight_shapes()["model.embedding.weight"][0]
        frame, mask = _frame_by(file), None
    else:
        model, record = compose_run(path).model, read_record(path)
        vocab_size, (prefix, suffix) = record["vocab_size"], record["document_frame"]
        frame, mask = (prefix, suffix), record.get("mask")  # runs from before `tokenizer.mask` have no such entry
    ids = Tokenizer.from_str(TokenizerFile(path=str(file)).to_json()).get_vocab(with_added_tokens=True)
    if mask is None and (name := find_mask(ids)):  # none is named
        mask = ids[name]
    return Source(path=path, model=model, vocab_size=vocab_size, tokenizer=file, frame=frame, mask=mask)


def place_of(init_from: str) -> Path:
    """Return the directory of a run or of a Hugging Face checkpoint. Raises `ConfigError` for what is neither."""
    source = cached(init_from) if is_hub_name(init_from) else Path(init_from).expanduser()
    if not source.exists():
        rule = "name a run, a Hugging Face directory or, as org/name@main, a checkpoint on the hub"
        raise ConfigError(f"init_from={init_from}: no such directory; {rule}")
    if not is_released(source) and not (source / "checkpoints").is_dir():
        rule = "neither config.json (Hugging Face) nor checkpoints (a run) in it; name such a directory"
        raise ConfigError(f"init_from={source}: {rule}")
    return source


def is_released(source: Path) -> bool:
    """Return whether the directory of a source is in Hugging Face's layout."""
    return (source / "config.json").is_file()


def open_released(source: Path) -> HuggingFaceWeights:
    """Return the weights of a Hugging Face directory. Raises `CheckpointError` also for a damaged tokenizer there."""
    weights, tokenizer = HuggingFaceWeights(source), source / "tokenizer.json"
    if tokenizer.is_file():
        try:
            load_tokenizer(tokenizer)
        except DataError:  # its fix is that of a corpus
            raise CheckpointError(f"{tokenizer}: not a readable tokenizer; fetch or write it again") from None
    return weights


def _frame_by(tokenizer: Path) -> tuple[list[int], list[int]] | None:
    """Return what a run would put around documents by this tokenizer alone, None where it would ask."""
    try:
        facts = describe(tokenizer, TokenizerConfig())
    except ConfigError:
        return None
    return facts.prefix, facts.suffix
