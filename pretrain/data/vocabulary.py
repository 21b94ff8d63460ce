"""What objectives need to know about a corpus's tokenizer: its special ids, and where words begin.

Holds the reading of a `tokenizer.json` for that purpose; encoding text is in `prepare.encode`, the type in `batch`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from pretrain.data.batch import Vocabulary
from pretrain.data.manifest import Manifest
from pretrain.tokenizer.base import find_mask, find_pad, find_sentinels

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's token for a byte of an unknown character
_STOPS = (".", "!", "?", "\N{IDEOGRAPHIC FULL STOP}")  # what sentences end with
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # stands for bytes that are only a part of a character

Edges = tuple[bool, bool]  # whether a word begins with a token, and whether one ends with it, whatever is beside it


def load_vocabulary(corpus: Path) -> Vocabulary:
    """Read the vocabulary of a prepared corpus. Raises `DataError` for a damaged one.

    An id is special if no text is encoded to it: special tokens, the unknown token, the mask, the document template,
    ids without a token, and tokens of WordPiece that its pre-tokenizer would split ("[unused1]").

    Words are separated by spaces and by punctuation, as in BERT. WordPiece marks the tokens that continue a word; for
    byte-level BPE and SentencePiece's models the characters at the ends of tokens decide. So text without spaces
    (Chinese, say) is one word per sentence, except with WordPiece, which splits it.
    """
    manifest = Manifest.load(corpus)
    tokenizer = manifest.tokenizer(corpus)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    mask = manifest.mask
    if mask is None and (name := find_mask(ids)):
        mask = ids[name]
    added = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    no_text = added | {mask, ids.get(_unknown(tokenizer)), *manifest.prefix, *manifest.suffix}
    special, starts, ends = np.ones((3, manifest.vocab_size), dtype=bool)
    stops = np.zeros_like(ends)
    edges, possible, spelling = _edges_by(tokenizer), _possible_by(tokenizer), _spelling_by(tokenizer)
    for text, token in ids.items():
        if token not in no_text and possible(text):
            special[token] = False
            starts[token], ends[token] = edges(text)
            stops[token] = spelling(text).endswith(_STOPS)
    return Vocabulary(
        special=special,
        starts_word=starts,
        ends_word=ends,
        mask=mask,
        prefix=manifest.prefix,
        suffix=manifest.suffix,
        ids=ids,
        ends_sentence=stops,
        sentinels=[ids[name] for name in find_sentinels(ids)],
        start=start_of(ids, manifest.prefix, manifest.suffix),
    )


def start_of(ids: dict[str, int], prefix: list[int], suffix: list[int]) -> int | None:
    """Return the id that a decoder sees first: that of padding (T5, Marian), else one around documents (BART)."""
    pad = find_pad(ids)
    return ids[pad] if pad else next(iter([*prefix, *suffix[::-1]]), None)


def _unknown(tokenizer: Tokenizer) -> str:
    """Return the token for unknown text, or "" if the tokenizer has none."""
    model = json.loads(tokenizer.to_str())["model"]
    if isinstance(tokenizer.model, models.Unigram):
        return "" if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return model.get("unk_token") or ""


def _possible_by(tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Return a function that says whether any text can be encoded to a token."""
    model, splitter = tokenizer.model, tokenizer.pre_tokenizer
    if not isinstance(model, models.WordPiece) or splitter is None:
        return lambda text: True
    prefix = model.continuing_subword_prefix
    return lambda text: len(splitter.pre_tokenize_str(text.removeprefix(prefix))) == 1


def _edges_by(tokenizer: Tokenizer) -> Callable[[str], Edges]:
    """Return a function from a token, as the vocabulary spells it, to its edges."""
    model = tokenizer.model
    if isinstance(model, models.WordLevel):
        return lambda text: (True, True)
    if prefix := getattr(model, "continuing_subword_prefix", None):
        return lambda text: (not text.startswith(prefix), False)
    if suffix := getattr(model, "end_of_word_suffix", None):
        return lambda text: (False, text.endswith(suffix))
    spelling = _spelling_by(tokenizer)
    return lambda text: _edges(spelling(text))


def _spelling_by(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Return a function from a token, as the vocabulary spells it, to the text that it stands for."""
    if _is_byte_level(tokenizer):
        decoder = decoders.ByteLevel()
        return lambda text: decoder.decode([text])
    return _spelt_out


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether tokens are spelt in bytes. Any step may say so, because a file may have no decoder."""
    spelt = json.loads(tokenizer.to_str())
    return '"type": "ByteLevel"' in json.dumps([spelt[step] for step in ("normalizer", "pre_tokenizer", "decoder")])


def _spelt_out(text: str) -> str:
    """Return the text of one of SentencePiece's tokens."""
    if byte := _BYTE.fullmatch(text):
        return bytes.fromhex(byte[1]).decode(errors="replace")
    return text.replace(_SPACE, " ")


def _edges(text: str) -> Edges:
    return not _in_word(text[0]), not _in_word(text[-1]) and text[-1] != " "  # a space goes with the word after it


def _in_word(character: str) -> bool:
    """Return whether a character is a letter, its mark, a digit or a part of a character: no space, no punctuation."""
    return character == _UNREADABLE or unicodedata.category(character)[0] in "LMN"
