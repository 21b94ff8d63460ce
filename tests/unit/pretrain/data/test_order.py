"""The order of training: mixtures give each source its share, and the shuffle is the documented bijection."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import BLOCK, Mixture, Permutation, arrangement, hash64, mix64, quotas

WORD = 2**64

weight_lists = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


def slow_mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) % WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def slow_hash(*words: int) -> int:
    state = 0
    for word in words:
        state = slow_mix(state ^ word % WORD)
    return state


def slow_permutation(number: int, size: int, seed: int, source: int, epoch: int) -> int:
    """The documented permutation, one number at a time: six Feistel rounds, until inside."""
    bits = max(6, (size - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    keys = [slow_mix(slow_hash(seed, source, epoch) ^ number) for number in range(6)]
    while True:
        low, high = number % 2**low_bits, number >> low_bits
        for turn, key in enumerate(keys):
            if turn % 2 == 0:
                low ^= slow_mix(high ^ key) % 2**low_bits
            else:
                high ^= slow_mix(low ^ key) % 2**high_bits
        number = high << low_bits | low
        if number < size:
            return number


def whole(size: int, seed: int = 0, source: int = 0, epoch: int = 0) -> list[int]:
    return Permutation(size, seed=seed, source=source, epoch=epoch)(np.arange(size)).tolist()


def test_the_hash_is_splitmix64():
    # The first outputs of the published generator for seed 0: its state grows by the increment before each output.
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert hash64(7, -1, 2**70 + 3) == slow_hash(7, -1, 2**70 + 3)


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000, 4097])
def test_every_number_comes_once(size):
    assert sorted(whole(size, seed=size, epoch=3)) == list(range(size))


@given(st.integers(1, 2**62), st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 2**40), st.data())
def test_it_is_the_documented_one(size, seed, source, epoch, data):
    numbers = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    images = Permutation(size, seed=seed, source=source, epoch=epoch)(np.array(numbers))
    assert images.tolist() == [slow_permutation(number, size, seed, source, epoch) for number in numbers]


def test_it_never_changes():
    """A run that was started with an older version must go on with the same data."""
    assert whole(10, seed=1, source=2, epoch=3) == [4, 6, 9, 7, 2, 0, 5, 8, 3, 1]
    far = Permutation(10**12, seed=1, source=0, epoch=0)(np.array([0, 1, 10**12 - 1]))
    assert far.tolist() == [859142925709, 818693101050, 148304188141]


def test_seed_source_and_epoch_each_make_another_order():
    orders = {tuple(whole(50, *key)) for key in itertools.product(range(3), repeat=3)}
    assert len(orders) == 27


@pytest.mark.parametrize("size", [2, 4])
def test_all_orders_of_few_are_equally_likely(size):
    keys = 700
    seen = Counter(tuple(whole(size, seed=seed)) for seed in range(keys))
    orders = list(itertools.permutations(range(size)))
    expected = keys / len(orders)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in orders)
    freedom = len(orders) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_neighbours_are_scattered():
    size, keys = 189, 1200
    orders = np.array([whole(size, seed=seed) for seed in range(keys)])
    freedom = size - 2
    gaps = np.bincount((orders[:, 1] - orders[:, 0]) % size, minlength=size)[1:]
    assert ((gaps - keys / (size - 1)) ** 2).sum() / (keys / (size - 1)) < freedom + 4 * (2 * freedom) ** 0.5
    fixed = (orders == np.arange(size)).sum(axis=1).mean()
    assert abs(fixed - 1) < 4 / keys**0.5


def slow_sources(counts: list[int]) -> list[int]:
    """Deal one block: at each place the source whose share so far exceeds what it got by most, the first of equals."""
    total, given_out, dealt = sum(counts), [0] * len(counts), []
    for place in range(total):
        deficits = [Fraction(count * (place + 1), total) - got for count, got in zip(counts, given_out, strict=True)]
        chosen = deficits.index(max(deficits))
        given_out[chosen] += 1
        dealt.append(chosen)
    return dealt


@given(weight_lists)
@settings(max_examples=50)
def test_quotas_are_the_nearest_whole_shares(weights):
    counts = quotas(weights)
    assert counts.sum() == BLOCK
    assert counts.min() >= 1
    exact = np.array(weights) / sum(weights) * BLOCK
    if exact.min() >= 1:
        assert (np.abs(counts - exact) < 1 + 1e-9).all()  # the largest-remainder method never leaves the quota
    order = np.argsort(weights, kind="stable")
    assert (np.diff(counts[order]) >= -1).all()


def test_known_quotas():
    assert quotas([0.7, 0.2, 0.1]).tolist() == [700, 200, 100]
    assert quotas([1, 1, 1]).tolist() == [334, 333, 333]
    assert quotas([1, 1e-9]).tolist() == [999, 1]
    assert quotas([5]).tolist() == [1000]
    assert quotas([1e-9] * 3 + [1.0]).tolist() == [1, 1, 1, 997]


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [float("inf"), 1], [1.0] * (BLOCK + 1)])
def test_weights_that_cannot_be_shared_out(weights):
    with pytest.raises(ValueError, match=r"data\.sources\.\*\.weight="):
        quotas(weights)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
@settings(max_examples=50)
def test_the_arrangement_is_the_documented_one(counts):
    assert arrangement(np.array(counts)).tolist() == slow_sources(counts)


@given(weight_lists)
@settings(max_examples=30)
def test_no_source_strays_far_from_its_share(weights):
    counts = quotas(weights)
    dealt = np.cumsum(arrangement(counts)[:, None] == np.arange(len(counts)), axis=0)
    exact = np.arange(1, BLOCK + 1)[:, None] * counts / BLOCK
    ahead, behind = (dealt - exact).max(), (exact - dealt).max()
    assert ahead < 1
    assert behind < max(1, len(counts) / 2)
    assert (dealt[-1] == counts).all()


def test_sources_run_through_their_own_epochs():
    weights, sizes = [0.5, 0.3, 0.2], [7, 400, 1]
    mixture = Mixture(weights, sizes)
    sources, epochs, indices = (column.tolist() for column in mixture.locate(np.arange(3 * BLOCK + 17)))
    drawn = Counter()
    for place, source in enumerate(slow_sources([500, 300, 200]) * 4):
        if place == len(sources):
            break
        expected = (source, *divmod(drawn[source], sizes[source]))
        assert (sources[place], epochs[place], indices[place]) == expected
        drawn[source] += 1


def test_any_place_can_be_asked_for_alone():
    mixture = Mixture([2.0, 1.0], [1000, 10])
    together = np.stack(mixture.locate(np.arange(5000)))
    draw = np.random.default_rng(0).permutation(5000)[:100]
    assert (np.stack(mixture.locate(draw)) == together[:, draw]).all()
    far = 10**15
    source, epoch, index = (int(column[0]) for column in mixture.locate(np.array([far])))
    assert epoch * [1000, 10][source] + index == far // BLOCK * [667, 333][source]
