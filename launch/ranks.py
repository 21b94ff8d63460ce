"""The ranks of one node: started as torchrun would start them, watched until all have ended, stopped together.

Holds processes, their logs and signals; launchers choose the command and the nodes.

This replaces torchrun, whose agent exits with 1 whatever its ranks exit with, kills them 30 s after a SIGTERM whatever
they are writing, and dies of SIGUSR1. The environment variables are the same.
"""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from pretrain.commands import STOP_SIGNALS, say
from pretrain.errors import ConfigError, PeerLost, Preempted, TimedOut

GRACE_S = 10.0  # for ranks to end by themselves once one has failed: they see its connections close
HANG_GRACE_S = 4.0  # the same once one missed another, which may be stopped: all that live have the same news by then
SHOWN_LINES = 40  # of the log of the rank that failed first
STOPPED, PEER_LOST = Preempted.exit_code, PeerLost.exit_code
SENT_AS_TERM = (signal.SIGINT, signal.SIGHUP)  # the first Ctrl-C, and a terminal that closes


@dataclass(frozen=True, kw_only=True)
class Node:
    """One of the nodes of a job."""

    number: int = 0
    of: int = 1  # how many nodes the job has
    address: str = "127.0.0.1"  # of node 0, where rank 0 listens
    port: int
    devices: str | None = None  # CUDA devices of its ranks, as CUDA_VISIBLE_DEVICES names them; None: as it is


class End(NamedTuple):
    """How a rank ended."""

    rank: int
    code: int  # negative: the signal that ended it


class Outcome(NamedTuple):
    """What came of the ranks of a node."""

    code: int  # one exit code for all of them, see `run_ranks`
    lost: int | None = None  # the rank that a signal ended first, or else the only one that had to be killed
    asked: bool = False  # whether they were asked to stop


def run_ranks(command: Sequence[str], *, count: int, node: Node, logs: Path) -> int:
    """Run `count` ranks of a command on this node to their end; return one exit code for all of them.

    It is that of the rank that failed first, or 7 if a signal killed that one. A rank that ended with 7, because it
    lost another, counts only if none failed otherwise, even if it was faster, and none stopped. It is 85 if they
    stopped as requested, and 0 if all ended with 0. The last lines of the rank that failed first are repeated at the
    end of standard error.

    Output goes to `logs`/rank-N.log. Rank 0 writes to this command's own output, and its standard error to the log as
    well. However this ends, short of SIGKILL, no rank outlives it.
    """
    return outcome_of(command, count=count, node=node, logs=logs).code


def outcome_of(command: Sequence[str], *, count: int, node: Node, logs: Path) -> Outcome:
    """Run ranks as `run_ranks` does; return also which of them was lost."""
    ranks = _Ranks(logs)
    with ranks.passing_on_signals():
        try:
            for local in range(count):
                ranks.start(command, _variables(local, count, node))
            if ranks.asked:  # before the last of them was there
                ranks.send(ranks.asked[-1])
            ends = ranks.wait()
        finally:
            ranks.send(signal.SIGKILL)
    _reap_orphans()
    code = _common_code(ranks, ends)
    by_signal = [end.rank for end in ends if end.code < 0]
    lost = by_signal[0] if by_signal else ranks.killed[0] if len(ranks.killed) == 1 else None
    return Outcome(code, lost, bool(ranks.asked))


def _common_code(ranks: _Ranks, ends: Sequence[End]) -> int:
    """Return the exit code for all ranks, and show the lines of the one that failed first."""
    stopped = any(end.code == STOPPED for end in ends)
    expected = {0, STOPPED, *(-number for number in ranks.asked), *([PEER_LOST] if stopped else [])}
    failures = [end for end in ends if end.code not in expected]
    if failures:
        failed = next((end for end in failures if end.code != PEER_LOST), failures[0])
        ranks.show(failed)
        return failed.code if failed.code > 0 else PEER_LOST
    return STOPPED if any(end.code for end in ends) else 0


def _reap_orphans() -> None:
    """Let go of ended processes whose parents were ranks: the first process of a container inherits those."""
    with suppress(ChildProcessError):
        while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _variables(local: int, count: int, node: Node) -> Mapping[str, str]:
    """Return the environment of a rank: torchrun's variables, and a share of the cores unless threads are set."""
    own: dict[str, object] = {
        "RANK": node.number * count + local,
        "LOCAL_RANK": local,
        "GROUP_RANK": node.number,
        "WORLD_SIZE": node.of * count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": node.address,
        "MASTER_PORT": node.port,
    }
    if node.devices is not None:
        own["CUDA_VISIBLE_DEVICES"] = node.devices
    threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
    return {**threads, **os.environ, **{name: str(value) for name, value in own.items()}}


class _Ranks:
    """The processes of ranks while they run."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._alive: dict[int, subprocess.Popen[bytes]] = {}
        self._began: dict[int, int] = {}  # bytes in the log of a rank from starts before this one
        self._ends: queue.SimpleQueue[End] = queue.SimpleQueue()
        self.asked: list[int] = []  # the signals that asked all ranks to stop
        self.killed: list[int] = []  # ranks that did not end by themselves after another had failed
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{logs}: no directory can be made there ({error}); choose another run.root") from None

    def start(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start the rank that the variables describe, in its own session, so that Ctrl-C reaches it only through us."""
        rank = int(variables["RANK"])
        with self._log(rank).open("ab") as log:
            self._began[rank] = log.tell()
            process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=None if rank == 0 else log,
                stderr=subprocess.PIPE if rank == 0 else subprocess.STDOUT,
                start_new_session=True,
            )
        self._alive[rank] = process
        threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def wait(self) -> list[End]:
        """Return how the ranks ended, in the order in which they did.

        Once one has failed, the others are killed after `GRACE_S`, and left out of the list; after less if it missed
        another one: a process that is stopped heeds no signal but SIGKILL.
        """
        ends: list[End] = []
        deadline, killed = None, False
        while self._alive:
            try:
                end = self._ends.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))
            except queue.Empty:
                self.send(signal.SIGKILL)
                deadline, killed = None, True
                continue
            del self._alive[end.rank]
            if killed and end.code == -signal.SIGKILL:
                self.killed.append(end.rank)
            else:
                ends.append(end)
            if end.code == STOPPED and not self.asked:  # it alone was: before training the others do not know
                self.ask(signal.SIGTERM)
            if end.code not in (0, STOPPED) and not killed:
                grace = HANG_GRACE_S if end.code == TimedOut.exit_code else GRACE_S
                deadline = min(deadline or math.inf, time.monotonic() + grace)
        return ends

    def send(self, number: int) -> None:
        """Send a signal to all ranks that still run."""
        for process in list(self._alive.values()):
            process.send_signal(number)

    def ask(self, number: int) -> None:
        """Ask all ranks to stop by a signal."""
        self.asked.append(number)
        self.send(number)

    @contextmanager
    def passing_on_signals(self) -> Iterator[None]:
        """While in here, pass signals that ask to stop on to all ranks."""
        interrupted = False

        def pass_on(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            if number == signal.SIGINT:
                if interrupted:
                    raise KeyboardInterrupt
                interrupted = True
                say("stopping: ranks that train save their step; Ctrl-C again ends them at once")
            self.ask(signal.SIGTERM if number in SENT_AS_TERM else number)

        # Under nohup the one is ignored, and in a shell's background the other: both stay so.
        ignored = {number for number in SENT_AS_TERM if signal.getsignal(number) == signal.SIG_IGN}
        before = {number: signal.signal(number, pass_on) for number in {*STOP_SIGNALS, *SENT_AS_TERM} - ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def show(self, failed: End) -> None:
        """Write a rank's last lines to standard error, unless it is rank 0, whose lines are there, and how it ended.

        A rank that was alone and ended by itself has said all.
        """
        code, log = failed.code, self._log(failed.rank)
        if failed.rank == 0 and len(self._began) == 1 and code > 0:
            return
        if failed.rank:
            with log.open(encoding="utf-8", errors="replace") as text:
                text.seek(self._began[failed.rank])
                sys.stderr.writelines(deque(text, SHOWN_LINES))
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        print(f"rank {failed.rank} {how}, the first to do so; above are the last lines of {log}", file=sys.stderr)

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        copying = threading.Thread(target=self._copy, args=(rank, process.stderr), daemon=True)
        copying.start()
        code = process.wait()
        copying.join(timeout=1)  # a process that the rank left behind may hold the pipe open for ever
        self._ends.put(End(rank, code))

    def _copy(self, rank: int, lines: IO[bytes] | None) -> None:
        """Copy the standard error of rank 0 to its log and to ours; that of the others goes to their logs itself."""
        with self._log(rank).open("ab", buffering=0) as log:
            for line in lines or ():
                log.write(line)
                with suppress(OSError):  # the terminal may be gone; a rank whose pipe nobody reads would block
                    sys.stderr.buffer.write(line)
                    sys.stderr.buffer.flush()

    def _log(self, rank: int) -> Path:
        return self._logs / f"rank-{rank}.log"
