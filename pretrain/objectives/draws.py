"""Random numbers keyed by slot: the same on every rank, at any time, and in any batch.

Holds the generator and what every use makes of its numbers alike; objectives use them. Free of torch.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox


class Use(IntEnum):
    """What numbers are for, so that two uses of one slot never share any. Never change a value: runs depend on them."""

    masking = 0
    pairs = 1
    spans = 2
    denoisers = 3
    infilling = 4
    sentences = 5
    prefixes = 6
    middles = 7
    replacements = 8


def uniform(seed: int, use: Use, keys: np.ndarray, counts: np.ndarray, columns: int) -> np.ndarray:
    """Return numbers in [0, 1), (sum(counts), columns) float64: counts[0] rows of slot 0, then those of slot 1, ...

    `keys` (B, 3) int64 are source, epoch and index of each slot, `counts` (B,) how many rows it wants. The generator is
    Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a function of a key and a counter: the
    seed and the use are its key, the slot's own key the upper words of the counter, whose lowest word counts.
    """
    numbers = np.empty((int(counts.sum()), columns))
    philox = Philox(key=np.array([seed % 2**64, use], dtype=np.uint64))
    generator = Generator(philox)
    state = philox.state  # with an empty buffer; a new object for every slot would cost twenty times as much
    end = 0
    for key, count in zip(keys.astype(np.uint64), counts.tolist(), strict=True):
        state["state"]["counter"][:] = (0, *key)
        philox.state = state
        begin, end = end, end + count
        generator.random(out=numbers[begin:end])
    return numbers


def subsets(numbers: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Choose `counts` of the items of each group, every subset of that size being as likely; (N,) bool.

    `numbers` (N,) are one an item, `sizes` (G,) the items of each group, of which `counts` (G,) are at most all.
    """
    group = np.arange(len(sizes)).repeat(sizes)
    order = np.lexsort((numbers, group))
    rank = np.arange(len(numbers)) - (sizes.cumsum() - sizes).repeat(sizes)
    chosen = np.zeros(len(numbers), dtype=bool)
    chosen[order[rank < counts.repeat(sizes)]] = True
    return chosen


def compositions(numbers: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Cut each group into `counts` parts, none of them empty, every way being as likely; return the parts' lengths.

    `numbers` (N,) are one an item, `sizes` (G,) the items of each group; a group that has any is cut into 1 part or
    more. The lengths are (sum(counts),), those of the first group first.
    """
    cuts = numbers.copy()
    cuts[(sizes.cumsum() - sizes)[sizes > 0]] = -1.0  # the first part begins where its group does
    begins = np.flatnonzero(subsets(cuts, sizes, counts))
    return np.diff(begins, append=len(numbers))
