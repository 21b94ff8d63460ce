"""Who is slow, by what ranks say of themselves, and how often it is said; the measure itself is in tests/dist."""

import logging

import pytest
import torch

from pretrain.distributed.stragglers import LEAST_S, QUIET, Reading, Stragglers, slow_ranks
from pretrain.distributed.world import World


@pytest.mark.parametrize(
    ("shares", "slow"),
    [
        ([0.1, 0.9], {1: 9.0}),
        ([0.8, 0.2, 0.3], {0: 3.2}),
        ([0.2, 0.3, 0.39, 0.25, 0.22], {}),
        ([0.9, 0.9, 0.2, 0.2, 0.2], {0: 4.5, 1: 4.5}),
        ([0.0, 0.5, 0.0], {1: 25.0}),
        ([1.0, 1.0], {}),
    ],
)
def test_those_are_slow_that_are_busy_for_longer_than_the_median_of_the_others(shares, slow):
    readings = [Reading(share * seconds, seconds, "a") for share, seconds in zip(shares, [2, 3, 4, 2, 5], strict=False)]
    assert slow_ranks(readings, 2.0) == pytest.approx(slow)


class Told(World):
    """The first of three ranks, of which the others are as they are told to be."""

    watched_s = LEAST_S

    def gather(self, message):
        return [[0.2, self.watched_s, "node0"], [1.8, self.watched_s, "node1"], [0.2, self.watched_s, "node2"]]


def test_a_straggler_is_named_once_in_a_while(caplog):
    caplog.set_level(logging.WARNING)
    stragglers = Stragglers(Told(0, 3, torch.device("cpu")), 2.0)
    for _ in range(QUIET):
        stragglers.compare()
    [record] = caplog.records
    assert record.getMessage().startswith("rank 1 on host node1 is a straggler: busy for 90 % of the time, 9.0 times")
    stragglers.compare()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("ratio", "watched_s"), [(None, LEAST_S), (2.0, LEAST_S / 2)])
def test_nothing_is_said_unless_it_is_asked_for_and_known(caplog, ratio, watched_s):
    world = Told(0, 3, torch.device("cpu"))
    object.__setattr__(world, "watched_s", watched_s)
    Stragglers(world, ratio).compare()
    assert not caplog.records


def test_a_rank_alone_is_measured_by_nobody():
    world = World.alone()
    with Stragglers(world, 2.0).measured() as measured:
        assert measured is world
