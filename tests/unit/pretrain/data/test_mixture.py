"""Mixtures: shares, evenness, and epochs of each source's own."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.mixture import BLOCK, Mixture, arrangement, quotas

weight_lists = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


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
