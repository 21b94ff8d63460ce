"""Finding the other ranks, and telling their end from a bug: who never came, who is lost, who hangs.

Holds the meeting at rank 0's store and the looks of errors; the process group is `distributed`'s.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pretrain.errors import ConfigError, HeadwaterError, PeerLost, TimedOut

JOIN_S = 600.0  # seconds in which all ranks must come: rank 0 may have to fetch a model from the hub before
POLL_S, PROBE_S = 0.2, 5.0  # between two looks whether they are there, and for one at most
LEAVE_S = 10.0  # that rank 0 waits for others to hear that ranks are missing
GIVEN_UP = "given up"  # key of the store: how long somebody waited in vain
SHOWN_RANKS = 16

# What gloo, NCCL and torch's store say of a connection that broke, and of one on which nothing came in time.
_LOST = re.compile(
    r"gloo/transport.*(Connection closed by peer|Connection reset by peer|Broken pipe)|Gloo connectFullMesh failed"
    r"|NCCL.*(remote process exited or there was a network error|Connection closed by remote peer)"
    r"|Connection was likely closed",
    re.DOTALL,
)
_TIMED_OUT = re.compile(
    r"gloo/transport.*(Timed out waiting|timeout caused)|milliseconds before timing out|wait timeout", re.DOTALL
)


def meet(rank: int, size: int) -> Store:
    """Return the store of this start's ranks once all of them have come to it.

    Raises `TimedOut` with the ranks that did not, and `ConfigError` for a port that rank 0 cannot have.
    """
    deadline = time.monotonic() + JOIN_S
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives ranks that it starts again
    store = PrefixStore(f"ranks-{attempt}", _store(rank, size, deadline))
    store.set(f"came/{rank}", "")
    store.add("arrived", 1)
    while (arrived := store.add("arrived", 0)) < size:
        if time.monotonic() >= deadline:
            store.set(GIVEN_UP, f"{JOIN_S:.0f} s")
        if store.check([GIVEN_UP]):  # by this rank or by another, whose patience is the one to tell
            missing = [str(number) for number in range(size) if not store.check([f"came/{number}"])]
            patience = store.get(GIVEN_UP).decode()
            _leave(store, rank, arrived)
            rule = "their own logs, or their nodes, say why"
            raise TimedOut(f"{_who(rank)}: {_listed(missing)} of {size} did not come within {patience}; {rule}")
        time.sleep(POLL_S)
    return store


def explained(error: RuntimeError, rank: int) -> HeadwaterError | None:
    """Return what an error of a collective says about other ranks, None if it says nothing: it may be a bug."""
    text = str(error)
    first = text.partition("\n")[0]
    if _TIMED_OUT.search(text):
        return TimedOut(f"{_who(rank)}: another rank hangs or is far behind; the logs of all ranks say where ({first})")
    if isinstance(error, dist.DistNetworkError) or _LOST.search(text):
        return PeerLost(f"{_who(rank)}: another rank ended or its network failed; its own log says why ({first})")
    return None


def _leave(store: Store, rank: int, arrived: int) -> None:
    """Leave a store in which ranks are missing: rank 0, whose end closes it, after the others that came."""
    store.add("left", 1)
    deadline = time.monotonic() + LEAVE_S
    while rank == 0 and store.add("left", 0) < arrived and time.monotonic() < deadline:
        time.sleep(POLL_S)


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
    """Wait until something listens at an address. The store itself would wait deaf to signals, with pages of log."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=PROBE_S):
                return
        except OSError as error:
            if time.monotonic() >= deadline:
                rule = f"rank 0 did not listen there within {JOIN_S:.0f} s; its own log, or its node, says why"
                raise TimedOut(f"{_who(rank)}: {host}:{port}: {rule} ({error})") from error
        time.sleep(POLL_S)


def _who(rank: int) -> str:
    return f"rank {rank} on host {socket.gethostname()}"


def _listed(ranks: Sequence[str]) -> str:
    shown = ", ".join(ranks[:SHOWN_RANKS])
    more = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
