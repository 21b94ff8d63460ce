"""The order of training: a keyed permutation of slot numbers, by arithmetic.

Holds the hash and the permutation; which source a sequence number belongs to is in `mixture`. Free of torch.

There is no shuffled index in memory or on disk: the number at any place of any epoch is computed when it is asked for,
so a run resumes at any step at once and every rank agrees without talking.
"""

from __future__ import annotations

import numpy as np

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
