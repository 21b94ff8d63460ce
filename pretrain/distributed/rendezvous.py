"""How ranks find each other, and how an error that another rank caused is told apart from a bug.

Holds the rendezvous at rank 0's store and the patterns of errors; the process group is in `world`.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Sequence

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pretrain.errors import ConfigError, HeadwaterError, PeerLost, TimedOut

JOIN_S = 600.0  # seconds in which all ranks must arrive; rank 0 may first have to fetch a model from the hub
POLL_S = 0.2  # between two attempts
PROBE_S = 5.0  # time-out of one attempt to connect
LEAVE_S = 10.0  # how long rank 0, whose end closes the store, lets others read that ranks are missing
TIMED_OUT = "timed out"  # key of the store: how long the first rank to time out has waited, and who had arrived
_START, _MET = "start", "met"  # keys of the store: the name of the newest start, and who has met in it
SHOWN_RANKS = 16

# What gloo, NCCL and torch's store report of a broken connection, and of one that timed out.
_LOST = re.compile(
    r"gloo/transport.*(Connection closed by peer|Connection reset by peer|Broken pipe)|Gloo connectFullMesh failed"
    r"|NCCL.*(remote process exited or there was a network error|Connection closed by remote peer)"
    r"|Connection was likely closed",
    re.DOTALL,
)
_MISSED = re.compile(
    r"Ranks? ([\d, ]*\d) failed to pass monitoredBarrier"
)  # of `mismatch`, which waits before each one
_TIMED_OUT = re.compile(
    r"gloo/transport.*(Timed out waiting|timeout caused)|milliseconds before timing out|wait timeout", re.DOTALL
)


def meet(rank: int, size: int) -> Store:
    """Return the store of the ranks of this start once all of them have arrived.

    The agents of torchrun keep one store while they start ranks again, in other numbers and, after a node has come
    back, without a common count of restarts. So rank 0 names each start, under which all ranks write, and tells which
    processes have met in it: a rank that finds the name of an earlier start is not among those, and waits for the next.

    Raises `TimedOut`, which names the missing ranks, and `ConfigError` for a port that rank 0 cannot listen on.
    """
    deadline = time.monotonic() + JOIN_S
    whole, own = _store(rank, size, deadline), secrets.token_hex(8)  # that of this process
    if rank == 0:
        whole.set(_START, own)
    name, store = None, whole
    while True:
        if (newest := _newest_start(whole)) != name:
            name, store = newest, _of_start(newest, whole)
            store.set(f"arrived/{rank}", own)
            store.set(beat_key(rank), "")  # there before anybody reads it, who would wait for it
            store.add("arrived", 1)
        if rank == 0 and store.add("arrived", 0) == size:
            store.set(_MET, " ".join(_arrived(store, size).values()))
        if _names(store, _MET, own):
            return store
        if time.monotonic() >= deadline and not store.check([TIMED_OUT]):
            store.set(TIMED_OUT, " ".join([f"{JOIN_S:.0f}", *_arrived(store, size).values()]))
        if _names(store, TIMED_OUT, own) or time.monotonic() >= deadline + LEAVE_S:  # this rank's word or another's
            there = _arrived(store, size)
            missing = [str(number) for number in range(size) if number not in there] or ["0"]  # of a start that is over
            waited = store.get(TIMED_OUT).decode().partition(" ")[0]
            leave(store, rank, len(there))
            rule = "their own logs, or their nodes, say why"
            raise TimedOut(f"{who(rank)}: {listed(missing)} of {size} did not arrive within {waited} s; {rule}")
        time.sleep(POLL_S)


def _arrived(store: Store, size: int) -> dict[int, str]:
    """Return the processes that have arrived in a start by their ranks."""
    there = [number for number in range(size) if store.check([f"arrived/{number}"])]
    return {number: store.get(f"arrived/{number}").decode() for number in there}


def error_of_peers(error: RuntimeError, rank: int, limit_s: float) -> HeadwaterError | None:
    """Return the `PeerLost` or `TimedOut` that an error of a collective stands for; None: it may be a bug of ours."""
    text = str(error)
    if found := _MISSED.search(text):
        return TimedOut(f"{who(rank)}: {not_ended(limit_s)}: ranks {found[1]} entered none by then")
    first = text.partition("\n")[0]
    if _TIMED_OUT.search(text):
        why = f"another rank hangs or is far behind; the logs of all ranks say where ({first})"
        return TimedOut(f"{who(rank)}: {not_ended(limit_s)}: {why}")
    if isinstance(error, dist.DistNetworkError) or _LOST.search(text):
        return PeerLost(f"{who(rank)}: another rank ended or its network failed; its own log says why ({first})")
    return None


def connected() -> Store:
    """Return another connection to the store in which the ranks of this start have met."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
    return _of_start(_newest_start(store), store)


def beat_key(rank: int) -> str:
    """Return where a rank's heartbeats are in the store."""
    return f"beat/{rank}"


def leave(store: Store, rank: int, others: int, key: str = "left") -> None:
    """Leave a store from which so many ranks still read. Rank 0, whose end closes it, leaves after the others."""
    store.add(key, 1)
    deadline = time.monotonic() + LEAVE_S
    while rank == 0 and store.add(key, 0) < others and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _newest_start(store: Store) -> str:
    """Return the name of the start that rank 0 named last, "" before the first."""
    return store.get(_START).decode() if store.check([_START]) else ""


def _of_start(name: str, store: Store) -> Store:
    return PrefixStore(f"ranks-{name}", store)


def _names(store: Store, key: str, process: str) -> bool:
    """Whether what is said under a key names a process."""
    return store.check([key]) and process in store.get(key).decode()


def _store(rank: int, size: int, deadline: float) -> Store:
    """Return the store at MASTER_ADDR:MASTER_PORT, where rank 0 listens, or torchrun's agent if there is one."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listens = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not listens:
        _await_listener(rank, host, port, deadline)
    try:
        return TCPStore(host, port, size, listens, wait_for_workers=False, multi_tenant=True)
    except dist.DistNetworkError as error:
        if not listens:
            raise
        rule = "rank 0 cannot listen there; choose a port that is free on its node"
        raise ConfigError(f"MASTER_PORT={port}: {rule} ({str(error).partition('.')[0]})") from error


def _await_listener(rank: int, host: str, port: int, deadline: float) -> None:
    """Wait until something listens at an address; the store's own wait ignores signals and floods the log."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=PROBE_S):
                return
        except OSError as error:
            if time.monotonic() >= deadline:
                rule = f"rank 0 did not listen there within {JOIN_S:.0f} s; its own log, or its node, says why"
                raise TimedOut(f"{who(rank)}: {host}:{port}: {rule} ({error})") from error
        time.sleep(POLL_S)


def not_ended(limit_s: float) -> str:
    """Say that a collective took longer than it may, by the setting that is this limit."""
    return f"a collective did not end within run.timeout_minutes={limit_s / 60:.3g}"


def who(rank: int) -> str:
    """Name a rank of this process with its host."""
    return f"rank {rank} on host {socket.gethostname()}"


def listed(ranks: Sequence[str]) -> str:
    """Name ranks, the first few by number."""
    shown = ", ".join(ranks[:SHOWN_RANKS])
    more = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
