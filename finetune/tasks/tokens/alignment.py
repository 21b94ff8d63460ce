"""From words to tokens and back: which word each token belongs to, and sentences cut between words to fit.

It goes by the characters that tokens stand for, so it is the same for every kind of tokenizer. Tags are the task's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from finetune.tasks.offsets import tokenized
from pretrain.errors import check

NO_WORD = -1  # instead of a token's word, or of a word's token


class WordSequence(NamedTuple):
    """A sequence of tokens: a sentence or a part of one, with the tokenizer's special tokens."""

    tokens: list[int]
    segments: list[int]  # token-type ids, as long
    words: np.ndarray  # (tokens,) int64, the word that each belongs to, or NO_WORD


class EncodedSentence(NamedTuple):
    """All sequences of a sentence."""

    sequences: list[WordSequence]
    left_out: int  # tokens of words that are in none of them


def word_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each word starts and ends, in characters of the words joined by single spaces."""
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    return [(end - 1 - len(word), end - 1) for end, word in zip(ends, words, strict=True)]


def encode_words(
    tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], max_tokens: int
) -> Iterator[EncodedSentence]:
    """Yield the sequences of each sentence, encoded with its words joined by spaces, and with special tokens.

    A sentence longer than `max_tokens` is cut before words into as few sequences as possible, with the tokens that it
    has as a whole; what does not fit of a single word is left out. A sentence without a token of any word has no
    sequence. Raises `ConfigError` for a `max_tokens` that the special tokens alone fill.
    """
    assert tokenizer.truncation is None and tokenizer.padding is None, "words would be lost"
    texts = [" ".join(words) for words in sentences]
    for words, found in zip(sentences, tokenized(tokenizer, texts), strict=True):
        yield _split(tokenizer.post_process(found.encoding), word_of_tokens(found.offsets, words), max_tokens)


def first_tokens(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that tokens belong to, ascending, and the place of the first token of each; both (found,)."""
    found, places = np.unique(words, return_index=True)
    return found[found != NO_WORD], places[found != NO_WORD]


def word_of_tokens(offsets: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Return the word of each token (N,), by the characters from offsets[:, 0] to offsets[:, 1] that it stands for.

    Of several words it is the last: a token may start with the space before a word, or with words of nothing but space.
    """
    solid = np.array([word for word, text in enumerate(words) if text], dtype=np.int64)
    if not len(solid):
        return np.full(len(offsets), NO_WORD)
    starts, ends = np.array(word_spans(words))[solid].T
    start, end = offsets.T
    last = np.searchsorted(starts, end) - 1  # the last word that starts before the token's end
    touched = (last >= 0) & (start < end) & (ends[last] > start)
    return np.where(touched, solid[last], NO_WORD)


def _split(encoding: Encoding, words: np.ndarray, max_tokens: int) -> EncodedSentence:
    """Return the sequences of a sentence, from its encoding and the word (T,) of each token that is not special."""
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    special = len(encoding.ids) - len(text)
    rule = f"the tokenizer puts {special} tokens around a text; must be at least {special + 1}"
    check(max_tokens > special, "task.max_tokens", max_tokens, rule)
    if (words == NO_WORD).all():
        return EncodedSentence([], 0)
    owners = np.full(len(encoding.ids), NO_WORD)
    owners[text] = words
    before, after = np.arange(text[0]), np.arange(text[-1] + 1, len(encoding.ids))
    ids, segments = np.array(encoding.ids), np.array(encoding.type_ids)
    sequences = []
    for run in _runs(owners[text], max_tokens - special):
        places = np.concatenate([before, text[run], after])
        sequences.append(WordSequence(ids[places].tolist(), segments[places].tolist(), owners[places]))
    kept = sum(np.count_nonzero(sequence.words != NO_WORD) for sequence in sequences)
    return EncodedSentence(sequences, int(np.count_nonzero(words != NO_WORD) - kept))


def _runs(owners: np.ndarray, room: int) -> list[slice]:
    """Cut tokens before words into as few runs of at most `room` as possible."""
    size = len(owners)
    if size <= room:
        return [slice(0, size)]
    _, starts = first_tokens(owners)
    runs: list[slice] = []
    for start, end in itertools.pairwise([*np.sort(starts).tolist(), size]):
        if runs and end - runs[-1].start <= room:
            runs[-1] = slice(runs[-1].start, end)
        else:
            runs.append(slice(start, min(end, start + room)))
    return runs
