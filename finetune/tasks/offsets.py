"""Which characters of a text its tokens stand for, whatever the tokenizer does to the text.

Holds what has to be mended in the offsets of `tokenizers`; `qa` and `tokens` find answers and words by the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import takewhile
from typing import NamedTuple
from unicodedata import category

import numpy as np
from tokenizers import Encoding, Tokenizer

from finetune.tasks.base import BATCH


class TokenizedText(NamedTuple):
    """The T tokens of a text."""

    encoding: Encoding  # without special tokens
    offsets: np.ndarray  # (T, 2) int32: the first character of each token, and the one after its last; both ascend


def tokenized(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[TokenizedText]:
    """Yield the tokens of each text and the characters that they stand for, in order.

    Tokens may have white space at their ends, and share characters: bytes, the letters of a ligature, a blank and the
    letter behind it. What a normaliser removes (accents, controls, zero-width characters) belongs to the token that it
    touches; where it stands alone between white space no token may have it.
    """
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    vanishes = cache(lambda letter: normalise(f"{letter}x") == normalise("x"))  # at the start of a text
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        # A SentencePiece map that removes the first letters of a text moves all offsets by as many: it starts later.
        skipped = [len([*takewhile(vanishes, text)]) for text in batch]
        # A post-processor takes the spaces off that a pre-tokenizer added before words, as if the text had them: none.
        processor, tokenizer.post_processor = tokenizer.post_processor, None
        try:
            found = tokenizer.encode_batch([text[size:] for text, size in zip(batch, skipped, strict=True)])
        finally:
            tokenizer.post_processor = processor
        for text, size, encoding in zip(batch, skipped, found, strict=True):
            offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2) + size
            yield TokenizedText(encoding, _touching(offsets, text))


def _touching(offsets: np.ndarray, text: str) -> np.ndarray:
    """Return offsets (T, 2) with the characters between tokens that touch one.

    Between two tokens marks and letters go to the first, as they combine with what is before them. From a sign on, as
    of two that became one, all goes to the second.
    """
    starts, ends = offsets.T.copy()
    for gap in np.flatnonzero(np.append(0, ends) < np.append(starts, len(text))).tolist():
        start, end = ends[gap - 1] if gap else 0, starts[gap] if gap < len(starts) else len(text)
        between = text[start:end]
        if between.isspace():
            continue
        has_first = gap > 0 and not text[start - 1].isspace()
        has_second = gap < len(starts) and not text[end].isspace()
        parts = re.split(r"\s", between)
        head, tail = len(parts[0]), len(parts[-1])
        if has_first and has_second and len(parts) == 1:
            head = next((place for place, letter in enumerate(between) if category(letter)[0] in "PS"), head)
            tail -= head
        if has_first:
            ends[gap - 1] += head
        if has_second:
            starts[gap] -= tail
    return np.stack([starts, ends], axis=1)
