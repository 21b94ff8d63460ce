"""Random numbers keyed by slot: the same on every rank, at any time, and in any batch.

Holds the generator only; `masking` and `sentence_pairs` use the numbers. Free of torch.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox


class Use(IntEnum):
    """What numbers are for, so that two uses of one slot never share any. Never change a value: runs depend on them."""

    masking = 0
    pairs = 1


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
