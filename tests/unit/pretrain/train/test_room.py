"""Whether a run can fit: what is refused before it is allocated, by which bound, and memory that runs out later."""

import resource
from collections import namedtuple

import numpy as np
import pytest
import torch
from rank_threads import on_threads
from toys import ALONE

from pretrain.errors import ResourceError
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig
from pretrain.strategy.base import Memory
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.train import room
from pretrain.train.room import Room, check_room, memory_named, rooms

NEEDS = Memory(400, 400, 800)  # of which 1440 and, without AdamW, 1080 bytes are certain


@pytest.mark.parametrize(("optim", "certain"), [(AdamWConfig(), 1440), (MuonConfig(), 1080)])
def test_what_cannot_fit_is_refused_and_what_may_fit_is_not(monkeypatch, optim, certain):
    there = [Room(5000, "more"), Room(certain, "a limit")]
    monkeypatch.setattr(room, "rooms", lambda ranks: there)
    check_room(NEEDS, DDPConfig(), optim, ALONE)
    there[1] = Room(certain - 1, "a limit")
    with pytest.raises(ResourceError, match=rf"\({certain:,} bytes.*\({certain - 1:,} bytes.*\(a limit\)"):
        check_room(NEEDS, DDPConfig(), optim, ALONE)


@pytest.mark.parametrize(("strategy", "fix"), [(DDPConfig(), "strategy=fsdp2 or zero3"), (FSDP2Config(), "more ranks")])
def test_all_ranks_refuse_what_does_not_fit_on_one(monkeypatch, strategy, fix):
    shares = []
    monkeypatch.setattr(room, "rooms", lambda ranks: shares.append(ranks) or [Room(100, "a limit")])
    found = on_threads(3, lambda world: check_room(NEEDS, strategy, AdamWConfig(), world))
    assert {type(answer) for answer in found} == {ResourceError} and len(set(map(str, found))) == 1
    assert "for rank 0 on host" in str(found[0]) and fix in str(found[0])
    assert shares == [3, 3, 3], "all ranks of a host share its memory"


def test_where_nothing_bounds_memory_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(room, "rooms", lambda ranks: [])
    check_room(Memory(1e30, 0, 0), DDPConfig(), AdamWConfig(), ALONE)


def machine(tmp_path, monkeypatch, *, groups, **files):
    """Let a folder stand for what the kernel says: `groups` of the process, and limits by their file."""
    monkeypatch.setattr(room, "PROC", tmp_path / "proc")
    monkeypatch.setattr(room, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    (tmp_path / "proc" / "self" / "statm").write_text("3 1 1")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable: 60 kB\nSwapFree:  3 kB\n")
    for name, limit in files.items():
        path = tmp_path / "cgroup" / name.replace("__", "/").replace("_in_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit)


def test_the_bounds_of_the_host_of_control_groups_and_of_the_process(tmp_path, monkeypatch):
    files = {"a__b__memory_in_max": "max\n", "a__memory_in_max": "7168\n", "memory_in_max": "9216\n"}
    machine(tmp_path, monkeypatch, groups="0::/a/b\n", **files)
    usage = namedtuple("Usage", "soft hard")(64 * resource.getpagesize(), -1)
    monkeypatch.setattr(resource, "getrlimit", lambda which: usage)
    found = rooms(2)
    assert [size for size, _ in found] == [63 * 512, 10 * 512, 12 * 512, 61 * resource.getpagesize()]
    assert "a/memory.max" in found[1].of and "RLIMIT_AS" in found[-1].of


def test_control_groups_of_version_1(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch, groups="9:name=systemd:/\n4:cpu,memory:/job\n0::/\n")
    folder = tmp_path / "cgroup" / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("1024")
    assert (4 * 1024, f"a share of {folder}/memory.limit_in_bytes") in rooms(1)


def test_this_machine_has_room():
    assert all(size > 2**20 for size, _ in rooms(1))


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60), lambda: np.empty(2**55), lambda: bytearray(2**60)])
def test_memory_that_runs_out_is_named(allocate):
    told = r"rank 0 on host .*: memory ran out \(.*lower train\.micro_batch_size"
    with pytest.raises(ResourceError, match=told), memory_named(ALONE):
        allocate()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(28, "No space left"), KeyError("a")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, memory_named(ALONE):
        raise error
    assert raised.value is error
