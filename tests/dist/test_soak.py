"""A run that is broken a few times, as `make soak` breaks one hundreds of times."""

import pytest
from soak import soak

pytestmark = pytest.mark.slow


def test_a_run_that_is_broken_again_and_again_ends_like_one_that_was_left_alone(place):
    assert soak(place, restarts=8, seed=4) == 0
