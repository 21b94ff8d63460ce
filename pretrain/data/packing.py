"""Packing: how the token stream of a split is cut into slots of at most `seq_len` tokens.

Holds geometry only (which ranges of the stream lie in which slot); the order of slots is in `order`, the tokens are
read in `stream`. Free of torch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np

from pretrain.data.corpus import Corpus, concatenated_ranges


class Packing(StrEnum):
    """How documents come into slots."""

    concat = "concat"  # cut the stream every seq_len tokens
    best_fit = "best_fit"  # whole documents wherever they fit


class Pieces(NamedTuple):
    """The documents, or parts of them, that lie in B slots: P ranges of the stream, none of them empty."""

    starts: np.ndarray  # (P,) int64, position of the first token in the stream
    lengths: np.ndarray  # (P,) int64, tokens, at least 1
    closed: np.ndarray  # (P,) bool, whether the document ends with the piece
    counts: np.ndarray  # (B,) int64, pieces of each slot


class Packer(Protocol):
    """The slots of one split."""

    num_slots: int

    def pieces(self, slots: np.ndarray) -> Pieces:
        """Return the pieces of slots (B,) int64, in order."""
        ...


def pack(packing: Packing, corpus: Corpus, seq_len: int, *, partial: bool) -> Packer:
    """Cut a split into slots; `partial` says whether `concat` keeps the last slot when it is not full."""
    if packing is Packing.best_fit:
        return BestFit(corpus.document_lengths(), seq_len)
    return Concat(corpus, seq_len, partial=partial)


class Concat:
    """The stream cut every `seq_len` tokens: slot i holds the tokens [i * seq_len, (i + 1) * seq_len).

    Training leaves the tail of less than `seq_len` tokens out; evaluation keeps it as the last, partial slot.
    """

    def __init__(self, corpus: Corpus, seq_len: int, *, partial: bool) -> None:
        self._corpus = corpus
        self._seq_len = seq_len
        self.num_slots = -(-corpus.num_tokens // seq_len) if partial else corpus.num_tokens // seq_len

    def pieces(self, slots: np.ndarray) -> Pieces:
        """Cut slots (B,) at the boundaries of documents."""
        starts = slots * self._seq_len
        ends = np.minimum(starts + self._seq_len, self._corpus.num_tokens)
        boundaries, found = self._corpus.boundaries(starts, ends)
        # Each slot's pieces end at the boundaries in it and at its own end, which makes an empty piece if both agree.
        last = (found + 1).cumsum() - 1  # where among all ends the slots' own ends are
        closed = np.ones(len(boundaries) + len(slots), dtype=bool)
        closed[last] = False
        cuts = np.empty(len(closed), dtype=np.int64)
        cuts[closed] = boundaries
        cuts[last] = ends
        begins = np.empty_like(cuts)
        begins[1:] = cuts[:-1]
        begins[last - found] = starts
        real = cuts > begins
        slot = np.arange(len(slots)).repeat(found + 1)[real]
        counts = np.bincount(slot, minlength=len(slots))
        return Pieces(begins[real], (cuts - begins)[real], closed[real], counts)


class BestFit:
    """Documents placed whole: longest first, each into the slot that it fills best, a new one if it fits none.

    Best-fit decreasing, as in Ding et al., "Fewer Truncations Improve Language Modeling", 2024. A document longer
    than `seq_len` is cut into full slots and a remainder. Every token is in exactly one slot; slots that nothing
    fits are left partial. The plan takes 17 bytes of memory a document or part.
    """

    def __init__(self, document_lengths: np.ndarray, seq_len: int) -> None:
        """Plan the slots of documents (D,) int64 that follow each other in the stream."""
        lengths, starts, closed = _cut_documents(document_lengths, seq_len)
        longest_first = np.argsort(-lengths, kind="stable")
        placements = place(np.bincount(lengths, minlength=seq_len + 1), seq_len)
        slots = np.concatenate([np.empty(0, dtype=np.int64), *(placement.slots() for placement in placements)])
        by_slot = longest_first[np.argsort(slots, kind="stable")]
        self._starts, self._lengths, self._closed = starts[by_slot], lengths[by_slot], closed[by_slot]
        self._firsts = np.concatenate([[0], np.cumsum(np.bincount(slots))])
        self.num_slots = len(self._firsts) - 1

    def pieces(self, slots: np.ndarray) -> Pieces:
        """Return the planned pieces of slots (B,), longest first."""
        counts = self._firsts[slots + 1] - self._firsts[slots]
        chosen = concatenated_ranges(self._firsts[slots], counts)
        return Pieces(self._starts[chosen], self._lengths[chosen], self._closed[chosen], counts)


def _cut_documents(document_lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return length, start and whether the document ends there, for each part of at most `seq_len` tokens."""
    parts = -(-document_lengths // seq_len)
    document = np.repeat(np.arange(len(document_lengths)), parts)
    skipped = concatenated_ranges(np.zeros_like(parts), parts) * seq_len  # tokens of the document before the part
    starts = (np.cumsum(document_lengths) - document_lengths)[document] + skipped
    left = document_lengths[document] - skipped
    return np.minimum(left, seq_len), starts, left <= seq_len


class Placement(NamedTuple):
    """`per_slot` items of one length in each of `num_slots` slots from `first_slot` on."""

    first_slot: int
    num_slots: int
    per_slot: int

    def slots(self) -> np.ndarray:
        """Return the slot of each item placed, (num_slots * per_slot,) int64."""
        return np.repeat(np.arange(self.first_slot, self.first_slot + self.num_slots), self.per_slot)


def place(histogram: np.ndarray, seq_len: int) -> list[Placement]:
    """Place items by best-fit decreasing; `histogram` (seq_len+1,) counts the items of each length.

    Items of one length are alike, and so are slots with the same room: they are placed in runs, so the work grows
    with the number of different lengths and rooms, not with items times slots. Placements come longest items first.
    """
    placements: list[Placement] = []
    num_slots = 0
    rooms: list[int] = []  # sorted: the different amounts of room left in slots begun
    runs: dict[int, list[tuple[int, int]]] = {}  # room -> runs (first slot, slots) with that room, the last run first

    def leave(room: int, run: tuple[int, int]) -> None:
        if room and run[1]:
            if room not in runs:
                insort(rooms, room)
            runs.setdefault(room, []).append(run)

    def take(room: int) -> tuple[int, int]:
        run = runs[room].pop()
        if not runs[room]:
            del runs[room]
            rooms.remove(room)
        return run

    for length in range(seq_len, 0, -1):
        items = int(histogram[length])
        while items:
            tightest = bisect_left(rooms, length)
            if tightest == len(rooms):
                room, run = seq_len, (num_slots, -(-items // (seq_len // length)))
                num_slots += run[1]
            else:
                room = rooms[tightest]
                run = take(room)
            # A slot with room for several items gets them one after another: after each it is the tightest that fits.
            per_slot = min(room // length, items)
            filled = min(run[1], items // per_slot)
            placements.append(Placement(run[0], filled, per_slot))
            items -= filled * per_slot
            leave(room - per_slot * length, (run[0], filled))
            leave(room, (run[0] + filled, run[1] - filled))
    return placements
