"""The order of training: sources interleaved by weight, the slots of each in a keyed permutation, by arithmetic.

Holds which slot of which source has a sequence number; what a slot contains is in `packing`. Free of torch.

There is no shuffled index in memory or on disk: the slot at any place of any epoch is computed on demand, so a run
resumes at any step at once and all ranks agree without communication.
"""

from __future__ import annotations

import numpy as np

from pretrain.errors import check

BLOCK = 1000  # slots after which the interleaving repeats; weights are rounded to this resolution

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64
_ROUNDS = 6  # 4 already give a pseudorandom permutation of a large domain; small domains want more
_MIN_BITS = 6  # so that both halves of a tiny domain have something to mix
_MAX_SIZE = 1 << 62


def mix64(words: np.ndarray) -> np.ndarray:
    """Return a well-mixed bijection of uint64 words: the output function of splitmix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    words = words + np.uint64(_GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash64(*words: int) -> int:
    """Return a 64-bit hash of integers, in order: h = mix64(h ^ word), starting with h = 0. Stable for ever."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = mix64(state ^ np.uint64(word % 2**64))
    return int(state[0])


class Permutation:
    """A bijection of range(size) chosen by (seed, source, epoch), evaluated at any point in constant time.

    A Feistel network over the next power of two (Luby and Rackoff, 1988), whose two halves take turns at being
    changed by a hash of the other. Numbers that fall outside range(size) are sent through again until they fall
    inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002); less than two passes are
    expected, as the domain is smaller than twice the size.
    """

    def __init__(self, size: int, *, seed: int, source: int, epoch: int) -> None:
        """Prepare the round keys. `size` is at least 1 and at most 2^62."""
        assert 1 <= size <= _MAX_SIZE
        bits = max((size - 1).bit_length(), _MIN_BITS)
        self._size = np.uint64(size)
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = mix64(np.uint64(hash64(seed, source, epoch)) ^ np.arange(_ROUNDS, dtype=np.uint64))

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Return where `numbers` (B,), all in range(size), are sent: (B,) int64."""
        assert not len(numbers) or (numbers.min() >= 0 and numbers.max() < self._size)
        images = self._encrypt(numbers.astype(np.uint64))
        while len(outside := np.flatnonzero(images >= self._size)):
            images[outside] = self._encrypt(images[outside])
        return images.astype(np.int64)

    def _encrypt(self, words: np.ndarray) -> np.ndarray:
        low, high = words & self._low_mask, words >> self._low_bits
        for first, second in zip(self._keys[::2], self._keys[1::2], strict=True):
            low = low ^ (mix64(high ^ first) & self._low_mask)
            high = high ^ (mix64(low ^ second) & self._high_mask)
        return (high << self._low_bits) | low


class Mixture:
    """An interleaving of sources that repeats every BLOCK slots, each source in proportion to its weight.

    Each source has its own epochs: one that is exhausted starts its next while the others continue theirs.
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
