"""Which ranks are silent, by what each says of itself; the watch itself is in tests/dist."""

from datetime import timedelta

import pytest

from pretrain.distributed.hang import GRACE_S, _silent, device_limit

WAITS, BUSY = {"waits": True, "at": "a, line 1, in b"}, {"waits": False, "at": "loader, line 7, in read"}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({0: WAITS, 2: WAITS}, "rank 1 of 3 did not answer: stopped, or on a node that is gone"),
        ({0: WAITS, 1: BUSY, 2: WAITS}, "rank 1 of 3 waited in no collective (rank 1 was at loader, line 7, in read)"),
        ({0: WAITS, 1: WAITS, 2: WAITS}, "all ranks wait in collectives; look at their devices and network"),
        (
            {1: BUSY},
            "ranks 0, 2 of 3 did not answer: stopped, or on a node that is gone and "
            "rank 1 of 3 waited in no collective (rank 1 was at loader, line 7, in read)",
        ),
    ],
)
def test_those_are_silent_that_do_not_answer_or_do_not_wait(answers, said):
    assert _silent(answers, 3) == said


@pytest.mark.parametrize("minutes", [0.05, 10, 60])
def test_nccls_own_limit_is_the_last_one(minutes):
    limit = timedelta(minutes=minutes)
    assert device_limit(limit) > limit + timedelta(seconds=GRACE_S)
