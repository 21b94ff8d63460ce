"""Special tokens as `transformers` knows them: their ids by role, and the template around texts and pairs of texts.

Holds nothing of networks: `family` and `export_dir` do.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer, processors

from pretrain.models.base import ModelKind
from pretrain.tokenizer.base import MASKS

# What an encoder's tokens are usually called, by role. Those around a document, and a mask of another name, are on the
# run's own record.
_USUAL_NAMES = {"pad": ("[PAD]", "<pad>"), "mask": MASKS, "unk": ("[UNK]", "<unk>")}


_LANGUAGE = re.compile(r"[a-z]{2}_[A-Z]{2}")  # names of mBART's tokens for languages, such as en_XX


def is_language(tokenizer: Tokenizer, token: int) -> bool:
    """Whether an id stands for the language of a text."""
    return _LANGUAGE.fullmatch(tokenizer.id_to_token(token) or "") is not None


def special_token_ids(tokenizer: Tokenizer, record: dict[str, Any], kind: ModelKind) -> dict[str, int | None]:
    """Return the ids of special tokens by their roles in `transformers`: bos, eos and, unless of decoders, the others.

    `record` is the `run.json` of a run, which holds the tokens around a document and the mask.
    """
    prefix, suffix = record["document_frame"]
    begin = next(iter(prefix), None)
    if kind is ModelKind.causal:
        return {"bos": begin, "eos": next(iter(suffix or prefix), None)}  # ends a document, or begins the next one
    usual = {
        role: next((token for name in names if (token := tokenizer.token_to_id(name)) is not None), None)
        for role, names in _USUAL_NAMES.items()
    }
    if (mask := record.get("mask")) is not None:  # runs from before `tokenizer.mask` have no such entry
        usual["mask"] = mask
    end = next(iter(suffix), None)
    if kind is ModelKind.encoder_decoder:
        begin = next((token for token in prefix if not is_language(tokenizer, token)), None)
        return {"bos": begin, "eos": end, **usual}
    return {"bos": begin, "eos": end, "cls": begin, "sep": end, **usual}


def set_template(tokenizer: Tokenizer, ids: tuple[list[int], list[int]], token_types: int) -> None:
    """Make a tokenizer put these ids before and after a text or a pair of texts, in place of its own template.

    The second text's segment is 1 where the model has two `token_types` or more. Where nothing ends a document, the
    ids that begin one stand between the texts of a pair.
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
