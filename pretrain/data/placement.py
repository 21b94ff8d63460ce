"""Placement: which slots items of known lengths go into, whole, so that few slots are needed.

Holds arithmetic on lengths only; what the items are is in `packing`. Free of torch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np


def fill(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of lengths (P,), all in range(1, seq_len + 1), in the order of their slots, longest first.

    The first array (P,) holds numbers of items, the second (slots+1,) where in it the items of each slot begin.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    placements = place(np.bincount(lengths, minlength=seq_len + 1), seq_len)
    slots = np.concatenate([np.empty(0, dtype=np.int64), *(placement.slots() for placement in placements)])
    by_slot = longest_first[np.argsort(slots, kind="stable")]
    return by_slot, np.concatenate([[0], np.cumsum(np.bincount(slots))])


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
