"""Ranks that never come, end in mid-run or hang: what the others say, and their exit codes."""

import os
import socket

import pytest
import torch.distributed as dist
from forks import Forked, python
from ranks import end, environments

from pretrain.distributed.rendezvous import error_of_peers
from pretrain.errors import PeerLost, TimedOut

COLLECTIVES = """
import atexit, datetime, os, signal, sys, time
from pretrain.compose import hydra_command
from pretrain.distributed import rendezvous
from pretrain.distributed import world as joining
def collect(cfg):
    import torch
    with joining.joined(datetime.timedelta(seconds=3)) as world:
        for number in range(50):
            if number == 20 and world.rank == 1:
                {fault}
            world.sum_ints(1)
            world.sum_tensor(torch.ones(1000))
            world.gather(world.rank)
            world.barrier()
rendezvous.JOIN_S = {join_s}
hydra_command(collect)
"""


def ends(fault: str, ranks=(0, 1, 2), size=3, join_s="10") -> list[tuple[int, str]]:
    """Return how ranks end that do nothing but talk to each other, one of them with a fault."""
    return ends_of(COLLECTIVES.format(fault=fault, join_s=join_s), ranks, size)


def ends_of(script: str, ranks: tuple[int, ...], size: int) -> list[tuple[int, str]]:
    """Return the exit codes of ranks that run a script, and what they say on standard error."""
    own = environments(size)
    processes = [Forked("-c", script, env=os.environ | own[rank]) for rank in ranks]
    codes = end(processes, 120)
    return [(code, process.stderr) for code, process in zip(codes, processes, strict=True)]


LAST = """
import torch
import torch.distributed as dist
from pretrain.distributed.world import joined
from pretrain.compose import hydra_command
def step(cfg):
    with joined() as world:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(50, 50))
        model(torch.ones(3, 50)).sum().backward()
        world.gather("the last collective")
    assert dist.is_initialized(), "taken down with the reducer, it may wait for threads that wait for it"
hydra_command(step)
"""


def test_a_group_of_ranks_is_left_to_the_end_of_their_processes():
    assert ends_of(LAST, ranks=(0, 1), size=2) == [(0, ""), (0, "")]


def test_a_rank_that_is_killed_is_missed_by_all_others():
    first, killed, last = ends("os.kill(os.getpid(), signal.SIGKILL)")
    assert (first[0], killed[0], last[0]) == (7, -9, 7)
    for rank, (_, told) in ((0, first), (2, last)):
        assert told.startswith(f"rank {rank} on host {socket.gethostname()}: another rank ended")
        assert len(told.splitlines()) == 1


def test_a_bug_of_one_rank_stays_its_own():
    # The teardown of the interpreter aborts the process at times, and its exit code is lost: here, always.
    first, broken, last = ends("atexit.register(os.abort); raise RuntimeError('wrong shapes')")
    assert (first[0], broken[0], last[0]) == (7, 1, 7)
    assert broken[1].splitlines()[-1].endswith("RuntimeError: wrong shapes")


def test_a_rank_that_hangs_ends_the_others_in_time():
    first, _, last = ends("time.sleep(8); os._exit(0)")
    assert 6 in (first[0], last[0]) and {first[0], last[0]} <= {6, 7}, "the first to end closes its connections"
    assert "another rank hangs or is far behind" in first[1] + last[1]


def test_ranks_that_never_come_are_named():
    patience = "4 + 50 * int(os.environ['RANK'])"  # rank 0 gives up first, and its end must not be what 2 tells
    for code, told in ends("pass", ranks=(0, 2), size=4, join_s=patience):
        assert code == 6
        assert "ranks 1, 3 of 4 did not arrive within 4 s" in told
    [(code, told)] = ends("pass", ranks=[1], join_s="2")
    assert code == 6
    assert "rank 1 on host" in told and "rank 0 did not listen there within 2 s" in told


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        own = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = python("-c", COLLECTIVES.format(fault="pass", join_s=3), env=os.environ | own, timeout=60)
    assert done.returncode == 2
    assert f"MASTER_PORT={port}: rank 0 cannot listen there" in done.stderr


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [10.0.0.1]:4. This is typically"), PeerLost),
        (RuntimeError(f"{GLOO}pair.cc:537] Read error [10.0.0.1]:4: Connection reset by peer."), PeerLost),
        (RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation"), TimedOut),
        (dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), PeerLost),
        (dist.DistStoreError("wait timeout after 1000ms, keys: /ranks-0/0"), TimedOut),
        (
            dist.DistBackendError(
                "NCCL error in: /pytorch/NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL "
                "version 2.27.5\nncclRemoteError: A call failed possibly due to a network error"
            ),
            PeerLost,
        ),
        (
            dist.DistBackendError("WorkNCCL(OpType=ALLREDUCE) ran for 600029 milliseconds before timing out."),
            TimedOut,
        ),
        (dist.DistBackendError("NCCL error in: x.cpp:1, invalid usage (run with NCCL_DEBUG=WARN)"), None),
        (dist.DistBackendError("NCCL error in: x.cpp:1, unhandled cuda error"), None),
        (RuntimeError(f"[enforce fail at {GLOO[1:]}pair.cc:456] op.preamble.length <= op.nbytes. 2000 vs 1000"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), None),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
    ],
)
def test_errors_that_tell_of_other_ranks_are_told_from_bugs(error, kind):
    reason = error_of_peers(error, 3, limit_s=90)
    assert type(reason) is (kind or type(None))
    assert reason is None or "rank 3 on host" in str(reason)
