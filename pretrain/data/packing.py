"""Packing: how the token stream of a split is cut into slots of at most `seq_len` tokens.

Holds geometry only: which ranges of the stream lie in which slot. The order of slots is in `order`; tokens are read in
`stream`. Free of torch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np

from pretrain.data.corpus import Corpus, concatenated_ranges
from pretrain.errors import check


class Packing(StrEnum):
    """How documents are packed into slots."""

    concat = "concat"  # cut the stream every seq_len tokens
    best_fit = "best_fit"  # whole documents wherever they fit
    windows = "windows"  # whole documents; long ones as overlapping windows, each with the ids around a document


class Chunks(NamedTuple):
    """The documents, or parts of them, that lie in B slots: P ranges of the stream, none of them empty."""

    starts: np.ndarray  # (P,) int64, position of the first token in the stream
    lengths: np.ndarray  # (P,) int64, tokens, at least 1
    closed: np.ndarray  # (P,) bool, whether the document ends with the chunk
    opens: np.ndarray  # (P,) bool, whether a sequence begins with the chunk; else it continues the one before
    context: np.ndarray  # (P,) bool, whether these tokens are also in another chunk, which has their targets
    counts: np.ndarray  # (B,) int64, chunks of each slot


class Packer(Protocol):
    """The slots of one split."""

    num_slots: int

    def chunks(self, slots: np.ndarray) -> Chunks:
        """Return the chunks of slots (B,) int64, in order."""
        ...


def pack(packing: Packing, corpus: Corpus, seq_len: int, *, stride: int = 0, partial: bool) -> Packer:
    """Cut a split into slots; `partial` says whether `concat` keeps the last slot when it is not full.

    Raises `ConfigError` for windows that leave no room for text.
    """
    if packing is Packing.concat:
        return Concat(corpus, seq_len, partial=partial)
    lengths = corpus.document_lengths()
    if packing is Packing.best_fit:
        return WholeDocuments(lengths, seq_len)
    before, after = len(corpus.manifest.prefix), len(corpus.manifest.suffix)
    return WholeDocuments(lengths, seq_len, before=before, after=after, stride=stride)


class Concat:
    """The stream cut every `seq_len` tokens: slot i holds the tokens [i * seq_len, (i + 1) * seq_len).

    Training leaves the tail of less than `seq_len` tokens out; evaluation keeps it as the last, partial slot.
    """

    def __init__(self, corpus: Corpus, seq_len: int, *, partial: bool) -> None:
        self._corpus = corpus
        self._seq_len = seq_len
        self.num_slots = -(-corpus.num_tokens // seq_len) if partial else corpus.num_tokens // seq_len

    def chunks(self, slots: np.ndarray) -> Chunks:
        """Cut slots (B,) at the boundaries of documents."""
        starts = slots * self._seq_len
        ends = np.minimum(starts + self._seq_len, self._corpus.num_tokens)
        boundaries, found = self._corpus.boundaries(starts, ends)
        # The chunks of a slot end at the boundaries inside it and at its own end, so an empty one follows if a boundary
        # is there, too.
        last = (found + 1).cumsum() - 1  # index of each slot's own end among all ends
        closed = np.ones(len(boundaries) + len(slots), dtype=bool)
        closed[last] = False
        cuts = np.empty(len(closed), dtype=np.int64)
        cuts[closed], cuts[last] = boundaries, ends
        begins = np.empty_like(cuts)
        begins[1:] = cuts[:-1]
        begins[last - found] = starts
        real = cuts > begins
        slot = np.arange(len(slots)).repeat(found + 1)[real]
        counts = np.bincount(slot, minlength=len(slots))
        opens = np.ones(np.count_nonzero(real), dtype=bool)
        return Chunks(begins[real], (cuts - begins)[real], closed[real], opens, ~opens, counts)


class WholeDocuments:
    """Whole documents, each a sequence; one longer than `seq_len` as windows, which may overlap, each a sequence.

    A window holds the ids before a document, the last `stride` tokens of the window before it, new tokens, and the ids
    after a document: `seq_len` in all, less in the last window. So every token of a document is new in exactly one
    window; everything else is context. Without any of these a long document is cut into full slots and a remainder.

    Documents and windows are placed longest first, each into the slot that it fills best, a new one if it fits none:
    best-fit decreasing, as in Ding et al., "Fewer Truncations Improve Language Modeling", 2024. Slots that nothing fits
    are left partial. The plan takes 18 bytes of memory a document or window.
    """

    def __init__(
        self, document_lengths: np.ndarray, seq_len: int, *, before: int = 0, after: int = 0, stride: int = 0
    ) -> None:
        """Plan the slots of documents (D,) int64 that follow each other in the stream.

        `before` and `after` are the ids around each document, repeated in every window; its length includes them.
        Raises `ConfigError` for windows that leave no room for text.
        """
        room = seq_len - before - after
        rule = f"must be above {before + after}, the ids around a document; raise it"
        check(room >= 1, "data.seq_len", seq_len, rule)
        rule = f"must be below {room}: data.seq_len={seq_len} without the {before + after} ids around a document"
        check(stride < room, "data.stride", stride, rule)
        starts, lengths, inner, closed = _cut_windows(document_lengths, before, room, after, stride)
        # Every window takes the ids around a document from the last document that is cut.
        self._before = int(starts[~inner & ~closed].max(initial=0)), before
        self._after = int((starts + lengths)[inner & closed].max(initial=after)) - after, after
        self._stride = stride
        by_slot, self._firsts = fill(lengths + inner * (before + stride) + ~closed * after, seq_len)
        self._windows = [column[by_slot] for column in (starts, lengths, inner, closed)]
        self.num_slots = len(self._firsts) - 1

    def chunks(self, slots: np.ndarray) -> Chunks:
        """Return the planned windows of slots (B,), longest first: up to four chunks each."""
        counts = self._firsts[slots + 1] - self._firsts[slots]
        chosen = concatenated_ranges(self._firsts[slots], counts)
        starts, new, inner, closed = (column[chosen] for column in self._windows)
        # The four parts of a window: (windows, 4) each.
        begins = np.stack(np.broadcast_arrays(self._before[0], starts - self._stride, starts, self._after[0]), axis=1)
        lengths = np.stack([inner * self._before[1], inner * self._stride, new, ~closed * self._after[1]], axis=1)
        real = lengths > 0
        own = np.zeros_like(real)
        own[:, 2] = True
        opens = np.zeros_like(real)
        opens[np.arange(len(real)), real.argmax(axis=1)] = True
        slot = np.arange(len(slots)).repeat(counts).repeat(real.sum(axis=1))
        return Chunks(
            starts=begins[real],
            lengths=lengths[real],
            closed=(own & closed[:, None])[real],
            opens=opens[real],
            context=~own[real],
            counts=np.bincount(slot, minlength=len(slots)),
        )


def _cut_windows(
    document_lengths: np.ndarray, before: int, room: int, after: int, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return start and length of the new tokens of each window, whether it is not the first, and whether it is last.

    A window has room for `room` tokens of text; `before` and `after` are the ids around a document.
    """
    step = room - stride  # from one window to the next
    further = -(-np.maximum(document_lengths - before - room - after, 0) // step)  # windows after the first
    windows = np.where(document_lengths > 0, further + 1, 0)
    document = np.repeat(np.arange(len(windows)), windows)
    number = concatenated_ranges(np.zeros_like(windows), windows)
    inner, closed = number > 0, number == further[document]
    skipped = number * step + before
    begins = np.where(inner, skipped + stride, 0)
    ends = np.where(closed, document_lengths[document], skipped + room)
    return (np.cumsum(document_lengths) - document_lengths)[document] + begins, ends - begins, inner, closed


def fill(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of lengths (P,), all in range(1, seq_len + 1), in the order of their slots, longest first.

    The first array (P,) holds indices of items, the second (slots+1,) where in it the items of each slot begin.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    runs = place(np.bincount(lengths, minlength=seq_len + 1), seq_len)
    slots = np.concatenate(
        [np.empty(0, np.int64), *(np.repeat(np.arange(run.first, run.first + run.slots), run.each) for run in runs)]
    )
    by_slot = longest_first[np.argsort(slots, kind="stable")]
    return by_slot, np.concatenate([[0], np.cumsum(np.bincount(slots))])


class SlotRun(NamedTuple):
    """Neighbouring slots that get equally many items of one length."""

    first: int  # number of the first slot
    slots: int
    each: int  # items in each slot


def place(histogram: np.ndarray, seq_len: int) -> list[SlotRun]:
    """Place items by best-fit decreasing; `histogram` (seq_len+1,) counts the items of each length.

    Items of one length are alike, and so are slots with the same room: they are placed in runs, so the work grows
    with the number of different lengths and rooms, not with items times slots. Runs come longest items first.
    """
    placed: list[SlotRun] = []
    num_slots = 0
    rooms: list[int] = []  # sorted: the different amounts of room left in slots, none of them 0
    partial: dict[int, list[tuple[int, int]]] = defaultdict(list)  # room -> (first slot, slots) with that room

    def keep(room: int, first: int, slots: int) -> None:
        if room and slots:
            if not partial[room]:
                insort(rooms, room)
            partial[room].append((first, slots))

    for length in range(seq_len, 0, -1):
        items = int(histogram[length])
        while items:
            tightest = bisect_left(rooms, length)
            if tightest == len(rooms):
                room, first, slots = seq_len, num_slots, -(-items // (seq_len // length))
                num_slots += slots
            else:
                room = rooms[tightest]
                first, slots = partial[room].pop()
                if not partial[room]:
                    del rooms[tightest]
            # A slot with room for several items gets them one after another: after each it is the tightest that fits.
            each = min(room // length, items)
            filled = min(slots, items // each)
            placed.append(SlotRun(first, filled, each))
            items -= filled * each
            keep(room - each * length, first, filled)
            keep(room, first + filled, slots - filled)
    return placed
