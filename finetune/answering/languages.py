"""Languages of texts, which multilingual models such as mBART read from a token around each text.

Holds where these tokens stand: behind sources, and as what the decoder begins with (mBART), or before the texts of both
sides (mBART-50). Other models are told the language in words or tokens of the source, for which there are templates.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from tokenizers import Tokenizer

from finetune.answering.base import Codec
from pretrain.errors import ConfigError, check
from pretrain.hub.special_tokens import is_language
from pretrain.models.base import ModelKind
from pretrain.models.generation.rules import NO_RULES

log = logging.getLogger(__name__)


def with_languages(codec: Codec, source: str | None, target: str | None) -> Codec:
    """Return the codec of texts in these languages; None: those that the checkpoint says by itself.

    Raises `ConfigError` for a language that its tokenizer does not have, and where nothing says which it is to write.
    """
    place = _place(codec)
    if place is None:
        for key, name in (("source_language", source), ("target_language", target)):
            rule = "this model's tokenizer puts no token of a language around texts; leave it out, or see task.template"
            check(name is None, f"task.{key}", name, rule)
        return codec
    side, at = place
    tokenizer, frame = codec.tokenizer, (list(codec.frame[0]), list(codec.frame[1]))
    if source is not None:
        frame[side][at] = _id(tokenizer, "source_language", source)
    rules = codec.rules or NO_RULES
    written = rules.first if side == 0 else codec.start
    if target is not None:
        written = _id(tokenizer, "target_language", target)
    elif written is None or not is_language(tokenizer, written):
        rule = "required and not given: the model marks texts by their language, and nothing says which it is to write"
        raise ConfigError(f"task.target_language: {rule}; set it, as in task.target_language=de_DE")
    languages = (tokenizer.id_to_token(frame[side][at]), tokenizer.id_to_token(written))
    log.info("sources are marked as %s, targets as %s", *languages)
    if side == 0:
        return replace(codec, frame=frame, rules=replace(rules, first=written))
    return replace(codec, frame=frame, start=written)


def target_frame(codec: Codec) -> tuple[list[int], list[int]] | None:
    """Return the ids around targets, given the codec of `with_languages`; None: they are those around sources."""
    if (place := _place(codec)) is None:
        return None
    side, at = place
    prefix, suffix = codec.frame
    if side == 0 and codec.rules and codec.rules.first is not None:
        return [*prefix[:at], codec.rules.first, *prefix[at + 1 :]], suffix
    return prefix, [*suffix[:at], *suffix[at + 1 :]]


def _place(codec: Codec) -> tuple[int, int] | None:
    """Return where the token of a source's language stands: 0 for before a text and 1 for behind it, and which it is.

    None for models without.
    """
    if codec.kind is not ModelKind.encoder_decoder:
        return None
    places = [(side, at) for side in (0, 1) for at in range(len(codec.frame[side]))]
    return next((each for each in places if is_language(codec.tokenizer, codec.frame[each[0]][each[1]])), None)


def _id(tokenizer: Tokenizer, key: str, name: str) -> int:
    """Return the id of a language. Raises `ConfigError` for one that a setting misspells."""
    names = tokenizer.get_vocab(with_added_tokens=True)
    known = sorted(each for each, token in names.items() if is_language(tokenizer, token))
    check(name in known, f"task.{key}", name, f"must be a language of the tokenizer: {', '.join(known)}")
    return names[name]
