"""The Hugging Face counterpart of a run: its family, its `config.json`, its special tokens, or why there is none.

Holds what is known before anything is trained, so that a run can say at its start what `export` will say at its end.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, processors

from pretrain.errors import ConfigError
from pretrain.hub import Family, family_for
from pretrain.tokenizer.base import MASKS, load_tokenizer
from pretrain.train.run_dir import read_record

# Tokens of encoders by what `transformers` calls them; the run's own record has those around a document, and a mask
# of another name.
_ROLES = {"pad": ("[PAD]", "<pad>"), "mask": MASKS, "unk": ("[UNK]", "<unk>")}

log = logging.getLogger(__name__)


class Counterpart(NamedTuple):
    """What `transformers` needs to know of a run to compute what its model computes."""

    family: Family
    network: dict[str, Any]  # of config.json: what it says of the network
    special: dict[str, int | None]  # ids of special tokens by the names that `transformers` has for what they do


def counterpart(model: Any, record: dict[str, Any], tokenizer: Tokenizer) -> Counterpart:
    """Return the counterpart of a model by the `record` of its run: size of the vocabulary, frame of documents, mask.

    Raises `ConfigError` for what has none; it names every setting that is in the way.
    """
    family = family_for(model)
    network = family.theirs(model, record["vocab_size"])
    special = _special(tokenizer, record, model.causal)
    if (needed := network.get("pad_token_id")) is not None and needed != special["pad"]:
        rule = f"{family.architecture} counts positions from the id of the padding token, which must be {needed} then"
        raise ConfigError(f"model.position_offset={needed + 1}: {rule}; that of tokenizer.json is {special['pad']}")
    return Counterpart(family, network, special)


def warn_without_counterpart(model: Any, run: Path) -> None:
    """Say why the model of a run cannot be exported, if so, before it is paid for."""
    record, tokenizer = read_record(run), load_tokenizer(run / "tokenizer.json")
    try:
        counterpart(model, record, tokenizer)
    except ConfigError as error:
        log.warning("python -m pretrain.export will refuse this run: %s", error)


def frame(tokenizer: Tokenizer, ids: tuple[list[int], list[int]], token_types: int) -> None:
    """Let a tokenizer put these ids before and after a text, or a pair of texts, whatever it put there before.

    The second text's segment is 1 where the model has two `token_types` or more. Where nothing ends a document, what
    begins the next one stands between the texts of a pair.
    """
    prefix, suffix = ([name for token in part if (name := tokenizer.id_to_token(token))] for part in ids)
    second = min(token_types, 2) // 2
    template = {
        "single": [*prefix, "$A", *suffix],
        "pair": [
            *(*prefix, "$A", *(suffix or prefix), f"$B:{second}"),
            *(f"{token}:{second}" for token in suffix),
        ],
    }
    special = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*prefix, *suffix])]
    tokenizer.post_processor = processors.TemplateProcessing(**template, special_tokens=special)


def _special(tokenizer: Tokenizer, record: dict[str, Any], causal: bool) -> dict[str, int | None]:
    """Return the ids of special tokens by the names that `transformers` has for what they do."""
    prefix, suffix = record["document_frame"]
    begin = next(iter(prefix), None)
    if causal:
        return {"bos": begin, "eos": next(iter(suffix or prefix), None)}  # what ends a document, or begins the next one
    known = {
        role: next((token for name in names if (token := tokenizer.token_to_id(name)) is not None), None)
        for role, names in _ROLES.items()
    }
    if (named := record.get("mask")) is not None:  # runs from before `tokenizer.mask` have no such entry
        known["mask"] = named
    end = next(iter(suffix), None)
    return {"bos": begin, "eos": end, "cls": begin, "sep": end, **known}
