"""What counts as a spike, by its definition."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pretrain.report import spikes


@given(
    values=st.lists(st.sampled_from([1.0, 1.1, 0.9, 5.0, 40.0, math.nan, math.inf]), max_size=40),
    window=st.integers(2, 9),
    least=st.integers(1, 5),
)
def test_a_spike_is_far_from_the_mean_of_the_window_before_it(values, window, least):
    with_numbers = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    expected = []
    for place, (index, value) in enumerate(with_numbers):
        before = [value for _, value in with_numbers[:place]][-window:]
        if place >= least:
            mean = math.fsum(before) / len(before)
            deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in before) / len(before))
            if abs(value - mean) > max(spikes.DEVIATIONS * deviation, 1e-9):
                expected.append(index)
    before = spikes.WINDOW, spikes.LEAST
    spikes.WINDOW, spikes.LEAST = window, least
    try:
        assert spikes.spikes(values) == expected
    finally:
        spikes.WINDOW, spikes.LEAST = before
