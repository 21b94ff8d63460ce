"""Finding the other ranks as threads of one process, and what errors of collectives say of them."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from rank_threads import on_threads
from ranks import free_port

from pretrain.distributed import rendezvous
from pretrain.distributed.rendezvous import error_of_peers, meet
from pretrain.errors import PeerLost, TimedOut


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(rendezvous, "POLL_S", 0.01)
    monkeypatch.setattr(rendezvous, "JOIN_S", 20.0)


def test_all_meet_once_the_last_of_them_is_there(address):
    came = []

    def body(world):
        time.sleep(0.05 * world.rank)
        came.append(world.rank)
        store = meet(world.rank, 3)
        found = len(came), store.check(["arrived/0", "arrived/1", "arrived/2"])
        world.barrier()  # the store goes with rank 0
        return found

    assert on_threads(3, body) == [(3, True)] * 3


def test_those_who_came_name_all_who_did_not(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_S", 2.0)
    found = on_threads(2, lambda world: meet([0, 2][world.rank], 5))
    for rank, error in zip([0, 2], found, strict=True):
        assert isinstance(error, TimedOut)
        assert f"rank {rank} on host" in str(error) and "ranks 1, 3, 4 of 5 did not arrive within 2 s" in str(error)


@pytest.fixture
def agent(address, monkeypatch):
    """A store that outlives its ranks, as that of torchrun's agent."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    port = int(os.environ["MASTER_PORT"])
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, multi_tenant=True)


@pytest.mark.parametrize("late", [0, 2])
def test_ranks_that_are_started_again_over_one_store_meet_those_of_their_own_start(agent, late):
    for start, size in enumerate([3, 3, 2, 3]):  # nobody counts the starts for them
        came = []

        def body(world, came=came, size=size, start=start):
            time.sleep(0.2 * (world.rank == late))
            came.append(world.rank)
            store = meet(world.rank, size)
            found = len(came)
            own, again = f"{start} {size}", rendezvous.connected()
            if world.rank == 0:
                store.set("whose", own)
            world.barrier()
            return found, store.get("whose").decode() == own == again.get("whose").decode()

        assert on_threads(size, body) == [(size, True)] * size


def test_a_start_that_timed_out_says_nothing_of_the_next(agent, monkeypatch):
    late = threading.Event()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 700 * late.is_set(), sleep=time.sleep)

    def let_it_be_late():
        while not agent.check(["start"]):
            time.sleep(0.02)
        start = dist.PrefixStore(f"ranks-{agent.get('start').decode()}", agent)
        start.wait(["arrived/0", "arrived/1"])
        late.set()

    threading.Thread(target=let_it_be_late, daemon=True).start()
    with monkeypatch.context() as patch:
        patch.setattr(rendezvous, "time", clock)
        said = [str(error) for error in on_threads(2, lambda world: meet(world.rank, 3))]
    assert all("rank 2 of 3 did not arrive within 20 s" in words for words in said), said

    def body(world):
        time.sleep(0.2 * (world.rank == 0))
        return meet(world.rank, 3).check(["arrived/2"])

    assert on_threads(3, body) == [True] * 3


def test_a_rank_0_that_does_not_come_again_is_missed(agent, monkeypatch):
    assert all(on_threads(2, lambda world: bool(meet(world.rank, 2))))
    monkeypatch.setattr(rendezvous, "JOIN_S", 0.2)
    monkeypatch.setattr(rendezvous, "LEAVE_S", 0.2)
    with pytest.raises(TimedOut, match=r"rank 1 on host .*: rank 0 of 2 did not arrive within 0 s"):
        meet(1, 2)


def test_where_nobody_listens_the_address_is_named(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_S", 0.05)
    with pytest.raises(TimedOut, match=r"rank 1 on host .*: 127\.0\.0\.1:\d+: rank 0 did not listen there"):
        meet(1, 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1", PeerLost),
        ("[../gloo/transport/tcp/pair.cc:534] Read error: Connection reset by peer", PeerLost),
        ("Gloo connectFullMesh failed with [../gloo/transport]", PeerLost),
        ("NCCL error: remote process exited or there was a network error", PeerLost),
        ("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv", TimedOut),
        ("Watchdog caught collective operation timeout: ran for 600021 milliseconds before timing out.", TimedOut),
        ("wait timeout after 600000ms, keys: /ranks-0//came", TimedOut),
        ("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)", None),
        ("Connection closed by peer of a data base", None),
    ],
)
def test_errors_of_other_ranks_are_told_from_our_own(text, kind):
    reason = error_of_peers(RuntimeError(f"{text}\nand a stack"), rank=3, limit_s=90)
    assert type(reason) is (kind or type(None))
    assert reason is None or ("rank 3 on host" in str(reason) and "and a stack" not in str(reason))
    assert kind is not TimedOut or "did not end within run.timeout_minutes=1.5: another rank hangs" in str(reason)


def test_a_store_that_is_gone_is_a_lost_rank():
    assert isinstance(error_of_peers(dist.DistNetworkError("Broken pipe"), rank=1, limit_s=90), PeerLost)
