"""Documents that repeat themselves: found among token ids and left out.

Such documents (tables of one value, strings of dashes, dumps of memory) were behind many spikes of the loss of OLMo 2,
which leaves out those with an n-gram of 1 to 13 tokens 32 or more times in a row (arXiv 2501.00656). Holds the rule and
how documents are looked at together; encoding is in `encode`. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

LONGEST = 13  # tokens of an n-gram whose repeats count
TOGETHER = 2**16  # tokens that are looked at together: a call of numpy costs as much for a few
REASON = "repetitive"  # under which documents are counted

T = TypeVar("T")


def repetitive(documents: Sequence[np.ndarray], most: int) -> np.ndarray:
    """Return for each document (n,) of ids whether an n-gram stands in it `most` times in a row or more, (D,) bool.

    A token equals the one n before it for n (most - 1) tokens in a row where n tokens stand there `most` times.
    """
    lengths, found = np.array([len(document) for document in documents]), np.zeros(len(documents), dtype=bool)
    for n in range(1, LONGEST + 1):
        long = np.flatnonzero(lengths >= n * most)
        if not len(long):
            break
        ids, ends = np.concatenate([documents[number] for number in long.tolist()]), lengths[long].cumsum()
        found[long[_with_period(ids, ends, n, n * (most - 1))]] = True
    return found


def _with_period(ids: np.ndarray, ends: np.ndarray, n: int, length: int) -> np.ndarray:
    """Return the numbers of the documents, which end at `ends` of `ids` (N,), with a run of `length` pairs or more.

    A pair is two equal ids n apart, inside one document.
    """
    differs = np.ones(len(ids) + 1, dtype=bool)  # place p + 1 is that of ids p and p + n; runs end at both ends, too
    np.not_equal(ids[n:], ids[:-n], out=differs[1 : len(ids) - n + 1])
    differs[(ends[:, None] - np.arange(n)).ravel()] = True  # pairs of two documents, none of which is shorter than n
    places = np.flatnonzero(differs)
    before = places[np.flatnonzero(np.diff(places) > length)]
    return np.searchsorted(ends, before, side="right")


def without_repetition(
    encoded: Iterable[tuple[T, np.ndarray]], most: int, *, before: int, after: int, counts: dict[str, int]
) -> Iterator[tuple[T, np.ndarray]]:
    """Pass on documents with their ids (n,), in their order, but those with an n-gram `most` times in a row or more.

    `before` and `after` are the ids of the template around a document, which are not looked at. `counts` takes the
    number of documents that were left out.
    """
    waiting: list[tuple[T, np.ndarray]] = []
    size = 0

    def judged() -> Iterator[tuple[T, np.ndarray]]:
        left_out = repetitive([ids[before : len(ids) - after] for _, ids in waiting], most)
        if left_out.any():
            counts[REASON] = counts.get(REASON, 0) + int(left_out.sum())
        return (entry for entry, out in zip(waiting, left_out, strict=True) if not out)

    for entry in encoded:
        waiting.append(entry)
        size += len(entry[1])
        if size >= TOGETHER:
            yield from judged()
            waiting, size = [], 0
    if waiting:
        yield from judged()
