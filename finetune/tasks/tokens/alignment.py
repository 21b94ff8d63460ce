"""From words to tokens and back: which word each token is a piece of, and sentences cut between words to fit.

Holds the arithmetic; tags are the task's business. It goes by the characters that tokens stand for, so it is the same
for every kind of tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from pretrain.errors import check

NO_WORD = -1  # in place of a token's word, or of a word's token
BATCH = 512  # sentences encoded at a time


class Framed(NamedTuple):
    """A sequence of tokens: a sentence or a part of one, in the tokenizer's frame."""

    tokens: list[int]
    segments: list[int]  # token-type ids, as long
    words: np.ndarray  # (tokens,) int64, the word that each is a piece of, or NO_WORD


class Fitted(NamedTuple):
    """All of a sentence."""

    sequences: list[Framed]
    left_out: int  # tokens of words that are in none of them


def spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each word begins and ends, in characters of the words joined by single spaces."""
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    return [(end - 1 - len(word), end - 1) for end, word in zip(ends, words, strict=True)]


def encode_words(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], max_tokens: int) -> Iterator[Fitted]:
    """Yield the sequences of each sentence, encoded with its words joined by spaces, and framed by the tokenizer.

    A sentence that does not fit `max_tokens` is cut before words into as few sequences as it takes, with the tokens
    that it has as a whole; what a single word has beyond a whole sequence is left out. A sentence without any piece of
    a word has no sequence. Raises `ConfigError` for a `max_tokens` that the frame alone fills.
    """
    assert tokenizer.truncation is None and tokenizer.padding is None, "words would be lost"
    for begin in range(0, len(sentences), BATCH):
        some = sentences[begin : begin + BATCH]
        encodings = tokenizer.encode_batch([" ".join(words) for words in some])
        for words, encoding in zip(some, encodings, strict=True):
            yield _fitted(encoding, words, max_tokens)


def first_pieces(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that tokens are pieces of, ascending, and where the first token of each is; both (found,)."""
    found, places = np.unique(words, return_index=True)
    return found[found != NO_WORD], places[found != NO_WORD]


def _fitted(encoding: Encoding, words: Sequence[str], max_tokens: int) -> Fitted:
    """Return the sequences of one sentence."""
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    frame = len(encoding.ids) - len(text)
    rule = f"the tokenizer puts {frame} tokens around a text; must be at least {frame + 1}"
    check(max_tokens > frame, "task.max_tokens", max_tokens, rule)
    owners = word_of_tokens(np.array(encoding.offsets).reshape(-1, 2), words)
    if (owners == NO_WORD).all():
        return Fitted([], 0)
    before, after = np.arange(text[0]), np.arange(text[-1] + 1, len(encoding.ids))
    ids, segments = np.array(encoding.ids), np.array(encoding.type_ids)
    sequences = []
    for run in _runs(owners[text], max_tokens - frame):
        places = np.concatenate([before, text[run], after])
        sequences.append(Framed(ids[places].tolist(), segments[places].tolist(), owners[places]))
    kept = sum(np.count_nonzero(sequence.words != NO_WORD) for sequence in sequences)
    return Fitted(sequences, int(np.count_nonzero(owners != NO_WORD) - kept))


def word_of_tokens(offsets: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Return the word of each token (N,), by the characters from offsets[:, 0] to offsets[:, 1] that it stands for.

    Of several words it is the last: a token may begin with the space, or the words of nothing but space, before it.
    """
    solid = np.array([word for word, text in enumerate(words) if text], dtype=np.int64)
    if not len(solid):
        return np.full(len(offsets), NO_WORD)
    starts, ends = np.array(spans(words))[solid].T
    begin, end = offsets.T
    last = np.searchsorted(starts, end) - 1  # the last word that begins before the token's end
    touched = (last >= 0) & (begin < end) & (ends[last] > begin)
    return np.where(touched, solid[last], NO_WORD)


def _runs(owners: np.ndarray, room: int) -> list[slice]:
    """Cut tokens before words into as few runs of at most `room` as it takes."""
    size = len(owners)
    if size <= room:
        return [slice(0, size)]
    _, begins = first_pieces(owners)
    runs: list[slice] = []
    for begin, end in itertools.pairwise([*np.sort(begins).tolist(), size]):
        if runs and end - runs[-1].start <= room:
            runs[-1] = slice(runs[-1].start, end)
        else:
            runs.append(slice(begin, min(end, begin + room)))
    return runs
