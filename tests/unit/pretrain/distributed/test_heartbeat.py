"""Heartbeats: who counts as silent, by whose clock; ranks that stop are in tests/dist."""

import threading
import time

import pytest
import torch.distributed as dist

from pretrain.distributed import heartbeat
from pretrain.distributed.heartbeat import Ages, Beat, Heartbeat, Progress
from pretrain.distributed.rendezvous import beat_key
from pretrain.distributed.stopped_process import Process


def test_ages_count_the_observers_looks_alone():
    moments = iter([0.0, 2.0, 4.0, 6.0, 3600.0, 3602.0])  # this process is stopped for an hour
    ages = Ages(longest_s=5.0, clock=lambda: next(moments))
    assert ages.look({1: 10, 2: 7}) == {1: 0, 2: 0}
    assert ages.look({1: 10, 2: 8}) == {1: 2, 2: 0}
    assert ages.look({1: 10, 2: 9}) == {1: 4, 2: 0}
    assert ages.look({1: 10, 2: 10}) == {1: 9, 2: 0}, "an hour in which nobody looked is one look"
    assert ages.look({1: 11, 2: 10}) == {1: 0, 2: 2}


def beats(size: int, silent: dict[int, int], ended: tuple[int, ...] = ()) -> tuple[dict[int, str], dict[int, int]]:
    """Let ranks beat over one store until one is named; return what each was told, and how many each says are left.

    `silent` are ranks that wrote one beat and no more, with their steps; `ended` have ended in order.
    """
    store = dist.HashStore()
    for rank in range(size):
        store.set(beat_key(rank), str(Beat(1, silent[rank], f"node{rank}")) if rank in silent else "")
    for rank in ended:
        store.set(beat_key(rank), str(Beat(0, 9, "")))
    told, all_told = {}, threading.Event()
    live = set(range(size)) - set(silent) - set(ended)

    def tell(rank: int, said: str) -> None:
        told[rank] = said
        if set(told) == live:
            all_told.set()

    ranks = {
        rank: Heartbeat(
            store,
            rank,
            size,
            limit_s=0.4,
            progress=Progress(lambda: 13),
            on_silence=lambda said, rank=rank: tell(rank, said),
        )
        for rank in live
    }
    assert all_told.wait(20 if silent else 1.5) == bool(silent)
    for rank in ranks.values():
        rank.close()
    return told, {number: rank.live for number, rank in ranks.items()}


def test_a_silent_rank_is_named_with_host_and_step_by_all_others():
    told, live = beats(4, {2: 12})
    text = (
        "no heartbeat within run.heartbeat_timeout_s=0.4 of rank 2 of 4, on host node2, last seen at step 12 "
        "(rank 0: 13): stopped, or gone"
    )
    assert told == dict.fromkeys([0, 1, 3], text)
    assert live[0] == 3, "rank 0 waits for so many to read that"


def test_a_silent_rank_0_is_named_by_the_others():
    told, _ = beats(3, {0: 5})
    assert set(told) == {1, 2} and len(set(told.values())) == 1
    assert "of rank 0 of 3, on host node0, last seen at step 5" in told[1]


def test_ranks_that_beat_and_ranks_that_ended_in_order_are_not_silent():
    assert beats(4, {}, ended=(0, 2))[0] == {}


class Stuck(dist.HashStore):
    """A store in a process that is stopped: whoever asks it waits."""

    def check(self, keys):
        time.sleep(60)
        return False


def test_a_store_that_does_not_answer_is_told_from_ranks_that_are_silent(monkeypatch):
    monkeypatch.setattr(heartbeat, "CLOSE_S", 0)
    told, said = [], threading.Event()
    beating = Heartbeat(
        Stuck(),
        2,
        3,
        limit_s=0.4,
        progress=Progress(),
        on_silence=lambda text: (told.append(text), said.set()),
    )
    assert said.wait(20)
    assert beating.is_cut_off
    assert told == [beating.cut_off]
    assert "rank 0 of 3 does not answer: the store" in told[0]
    beating.close()


@pytest.mark.parametrize("text", [b"", str(Beat(7, 3, 'a "host"', Process(5, 6))).encode()])
def test_beats_are_read_as_they_were_written(text):
    assert Beat.read(text) == (Beat(7, 3, 'a "host"', Process(5, 6)) if text else Beat(-1, 0, "?"))
