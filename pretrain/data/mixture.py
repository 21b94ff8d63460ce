"""Mixing sources by weight: which source, epoch and place a sequence number belongs to.

Holds the arithmetic of the interleaving; the shuffle inside a source is in `order`. Free of torch.
"""

from __future__ import annotations

import numpy as np

from pretrain.errors import check

BLOCK = 1000  # slots after which the interleaving repeats; weights are rounded to this resolution


class Mixture:
    """An interleaving of sources that repeats every BLOCK slots, each source in proportion to its weight.

    Each source runs through its own epochs: one that is exhausted begins its next while the others go on.
    """

    def __init__(self, weights: list[float], sizes: list[int]) -> None:
        """Arrange one block for sources with these weights (shares of slots) and sizes (slots in an epoch, >= 1)."""
        self.quotas = quotas(weights)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._sources = arrangement(self.quotas)  # (BLOCK,) source of each place of a block
        drawn = self._sources[:, None] == np.arange(len(sizes))
        before = np.cumsum(drawn, axis=0) - drawn
        self._ranks = before[np.arange(BLOCK), self._sources]  # (BLOCK,) how often its source came before

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return source, epoch and place in that epoch of sequence numbers (B,), each (B,) int64."""
        blocks, places = np.divmod(numbers, BLOCK)
        sources = self._sources[places]
        drawn = blocks * self.quotas[sources] + self._ranks[places]
        epochs, indices = np.divmod(drawn, self._sizes[sources])
        return sources, epochs, indices


def quotas(weights: list[float]) -> np.ndarray:
    """Return how many of the BLOCK places each weight gets, (sources,) int64, by the largest-remainder method.

    Every weight gets at least one place. Raises `ValueError` for weights that cannot be shared out.
    """
    shares = np.array(weights, dtype=np.float64)
    key = "data.sources.*.weight"
    check(bool((shares > 0).all() and np.isfinite(shares).all()), key, weights, "every weight must be a number above 0")
    check(len(shares) <= BLOCK, key, weights, f"at most {BLOCK} sources can be mixed")
    exact = shares / shares.sum() * BLOCK
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    while counts.sum() < BLOCK:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > BLOCK:  # the places promised to tiny weights come from those most above their share
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts


def arrangement(counts: np.ndarray) -> np.ndarray:
    """Return the source of each place of a block, (sum of counts,) int64: always the one furthest behind its share.

    Ties go to the first source. Each source comes exactly `counts` times, as only one below its count can be behind.
    """
    total = int(counts.sum())
    behind = np.zeros_like(counts)  # places owed so far, times `total`
    sources = np.empty(total, dtype=np.int64)
    for place in range(total):
        behind += counts
        sources[place] = chosen = np.argmax(behind)
        behind[chosen] -= total
    return sources
