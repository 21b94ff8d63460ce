"""A run that is broken a few times, as `make soak` breaks one hundreds of times."""

import pytest
from soak import PLACES, soak

pytestmark = pytest.mark.slow


def test_a_run_that_is_broken_again_and_again_ends_like_one_that_was_left_alone(tmp_path, place):
    (tmp_path / "text.txt").write_bytes((place / "text.txt").read_bytes())
    assert soak(tmp_path, restarts=8, seed=4, places=PLACES) == 0
