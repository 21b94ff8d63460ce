"""What objectives need to know of a prepared corpus's tokenizer: its special ids, and where words begin.

Holds the reading of a `tokenizer.json` for that purpose; encoding text is in `encoding`, the type in `base`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from pretrain.data.base import Vocabulary
from pretrain.data.manifest import Manifest
from pretrain.data.tokenizer import load_tokenizer

MASKS = ("[MASK]", "<mask>")  # what tokenizers call the token that hides another
SPACES = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")  # byte-level, SentencePiece


def load_vocabulary(corpus: Path) -> Vocabulary:
    """Read the vocabulary of a prepared corpus. Raises `DataError` for a damaged one."""
    manifest = Manifest.load(corpus)
    tokenizer = load_tokenizer(corpus / "tokenizer.json")
    ids = tokenizer.get_vocab(with_added_tokens=True)
    special = np.zeros(manifest.vocab_size, dtype=bool)
    special[[token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]] = True
    special[manifest.prefix + manifest.suffix] = True
    starts, ends = np.ones_like(special), np.ones_like(special)
    for text, token in ids.items():
        if not special[token]:
            starts[token], ends[token] = _edges(tokenizer, text)
    return Vocabulary(
        special=special,
        starts_word=starts,
        ends_word=ends,
        mask=next((ids[name] for name in MASKS if name in ids), None),
        prefix=manifest.prefix,
        suffix=manifest.suffix,
    )


def _edges(tokenizer: Tokenizer, text: str) -> tuple[bool, bool]:
    """Return whether a word begins with this token, and whether one ends with it, whatever stands beside it."""
    if isinstance(tokenizer.model, models.WordPiece):
        return not text.startswith(tokenizer.model.continuing_subword_prefix), False
    return text.startswith(SPACES) or not _in_word(text[0]), not _in_word(text[-1])


def _in_word(character: str) -> bool:
    return character.isalnum() or character not in pre_tokenizers.ByteLevel.alphabet()
