"""Messages and sums over ranks, with torch's collectives played by threads."""

import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from rank_threads import on_threads
from torch.distributed import FileStore, distributed_c10d

from pretrain.distributed import hang
from pretrain.distributed import world as module
from pretrain.distributed.world import World
from pretrain.errors import PeerLost


@pytest.fixture
def on_ranks(monkeypatch):
    """Call a body on each rank with a `World` as it is in a run, over collectives that meet in memory."""
    own = threading.local()

    def all_reduce(tensor):
        tensor.copy_(torch.stack(own.exchange(own.rank, tensor.clone())).sum(0))

    def all_gather(tensors, tensor):
        values = own.exchange(own.rank, tensor.clone())
        assert {value.shape for value in values} == {tensors[0].shape}, "torch wants equal shapes"
        for out, value in zip(tensors, values, strict=True):
            out.copy_(value)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather", all_gather)

    def call(size, body):
        def enter(threads):
            own.rank, own.exchange = threads.rank, threads.exchange
            return body(World(threads.rank, size, torch.device("cpu")))

        return on_threads(size, enter)

    return call


@pytest.mark.parametrize("size", [1, 2, 3])
def test_messages_of_any_length_come_in_the_order_of_ranks(on_ranks, size):
    messages = [{"é": [1, None, "x" * 40]}, "", {"b": 2.5}][:size]
    assert on_ranks(size, lambda world: world.gather(messages[world.rank])) == [messages] * size


@pytest.mark.parametrize("size", [1, 3])
def test_integers_are_summed_exactly_each_by_itself(on_ranks, size):
    large = 2**60 + 1
    expected = [sum(large + rank for rank in range(size)), -sum(range(size)), 4 * size]
    assert on_ranks(size, lambda world: world.sum_ints(large + world.rank, -world.rank, 4)) == [expected] * size


@pytest.mark.parametrize("size", [1, 3])
def test_a_sum_of_tensors_leaves_what_it_sums(on_ranks, size):
    def body(world):
        own = torch.tensor([1.5, float(world.rank)], dtype=torch.float64)
        summed = world.sum_tensor(own)
        assert own.tolist() == [1.5, world.rank]
        return summed.tolist()

    assert on_ranks(size, body) == [[1.5 * size, sum(range(size))]] * size


def test_who_we_are_comes_from_torchrun(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (module.world_size(), module.rank()) == (1, 0)
    for name, value in {"WORLD_SIZE": "6", "RANK": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (module.world_size(), module.rank()) == (6, 4)
    assert [World(rank, 6, torch.device("cpu")).is_first for rank in (0, 4)] == [True, False]


@pytest.fixture
def joining(monkeypatch, tmp_path):
    """Torchrun's variables of local rank 1 on the third of three nodes, and what a process group is asked for."""
    for name, value in {"WORLD_SIZE": "6", "RANK": "5", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(module, "device_type", lambda: "cpu")
    monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(module, "meet", lambda rank, size: ("store", rank, size))
    monkeypatch.setattr(module, "connected", lambda: FileStore(str(tmp_path / "store")))
    monkeypatch.setattr(distributed_c10d, "default_pg_timeout", None)  # of groups that engines make; set by `joined`
    monkeypatch.setattr(dist, "is_initialized", lambda: False)  # another test's group stays as it is
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.append((backend, options)))
    return asked


def test_ranks_join_under_their_number_among_all(joining):
    with module.joined() as world:
        assert world == World(5, 6, torch.device("cpu"))
    options = {"store": ("store", 5, 6), "rank": 5, "world_size": 6, "timeout": module.TIMEOUT}
    assert joining == [("gloo", options)]
    assert distributed_c10d.default_pg_timeout == module.TIMEOUT


def test_a_gpu_is_bound_and_nccl_has_more_patience_than_the_host(joining, monkeypatch):
    """The group's own time-out is that of all its backends; gloo's is lowered once it is there."""
    group, lowered, ended = SimpleNamespace(), [], []
    group._get_backend = lambda device: SimpleNamespace(_set_default_timeout=lowered.append)
    monkeypatch.setattr(module, "device_type", lambda: "cuda")
    monkeypatch.setattr(module, "pci_of", lambda device: (0, 0, 0))
    for name, value in {"device_count": lambda: 8, "set_device": lambda device: None}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(module, "_group", lambda: group)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: ended.append("all are here"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append("destroyed"))
    limit = timedelta(minutes=3)
    with module.joined(limit) as world:
        assert world.device == torch.device("cuda", 1) and lowered == [limit] and not ended
    [(backend, options)] = joining
    assert (backend, options["device_id"]) == ("cpu:gloo,cuda:nccl", world.device)
    assert options["timeout"] > limit + timedelta(seconds=hang.GRACE_S)
    assert distributed_c10d.default_pg_timeout == options["timeout"]
    assert ended == ["all are here", "destroyed"]
    with pytest.raises(RuntimeError, match="of ours"), module.joined(limit):
        raise RuntimeError("a bug of ours")
    assert len(ended) == 2, "peers may be gone, and NCCL would wait for them"


def test_one_process_alone_joins_nothing(joining, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with module.joined() as world:
        assert world == World.alone()
    assert joining == []


def test_errors_that_tell_of_other_ranks_are_theirs_and_all_others_ours(joining):
    with pytest.raises(PeerLost, match="rank 5 on host"), module.joined():
        raise RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), module.joined():
        raise RuntimeError("shapes differ")
