"""`python -m launch.doctor PROGRAM SETTINGS`: examine everything that a run will need, and print one page.

Holds the command, the group of ranks and the page; the checks are in the other files of this folder. It is started like
the ranks of a run: by torchrun, by `launch`, or alone.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import logging
import os
import socket
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from launch.doctor import collectives, inputs, machine, plan, storage
from launch.doctor.base import PATIENCE, Finding, Level, Subject, counted, examine, grouped
from launch.jobs import PROGRAMS
from pretrain.compose import compose
from pretrain.distributed.world import World, rank, world_size
from pretrain.errors import HeadwaterError, PeerLost, TimedOut

CHECKS = [*plan.CHECKS, *machine.CHECKS, *collectives.CHECKS, *storage.CHECKS, *inputs.CHECKS]
WIDTH = 120  # characters of the page


def main() -> int:
    """Compose, join, examine, print; return the exit code of the first failure, 0 without one."""
    program, *overrides = sys.argv[1:] or [""]
    if program not in PROGRAMS:
        print(f"usage: python -m launch.doctor {'|'.join(PROGRAMS)} SETTINGS", file=sys.stderr)
        return 2
    try:
        cfg, refusal = compose(overrides, PROGRAMS[program]), None
    except HeadwaterError as error:
        cfg, refusal = None, str(error)
    if trouble := join():
        print(f"rank {rank()}: {trouble}", file=sys.stderr)
        return TimedOut.exit_code
    world = World(rank(), world_size(), torch.device("cpu"))
    if world.is_first:
        print(f"doctor: {program} on {counted(world.size, 'rank')}\n", flush=True)
    findings = []
    for finding in examination(program, cfg, refusal, world):
        findings.append(finding)
        # At once: should a library end the process, the page shows how far it came.
        print(line(finding), file=sys.stdout if world.is_first else sys.stderr, flush=True)
    if world.is_first:
        print(f"\n{outcome(findings)}", flush=True)
    return next((finding.code for finding in findings if finding.level is Level.failed), 0)


def join() -> str | None:
    """Join the group of all ranks over gloo, which needs no GPU; return what is wrong if it does not form."""
    if world_size() == 1:
        return None
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # of sockets, stores and time-outs
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        text = f"the {world_size()} ranks do not find each other at {place}: {' '.join(str(error).split())}"
        return f"{text}; check that all of them were started, and the network (GLOO_SOCKET_IFNAME names the interface)"
    return None


def examination(program: str, cfg: Any, refusal: str | None, world: World) -> Iterator[Finding]:
    """Carry out all checks, or those that need no configuration if some rank has none.

    Yields the findings on the first rank; on the others nothing, but for the loss of a rank.
    """
    try:
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        own_gpu = torch.cuda.is_available() and local < torch.cuda.device_count()
        hosts, have_gpu, refusals = zip(*world.gather([host, own_gpu, refusal]), strict=True)
        device = torch.device("cuda", local) if all(have_gpu) else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        subject = Subject(program, None if any(refusals) else cfg, world, list(hosts), device)
        if any(refusals) and world.is_first:
            for text, ranks in grouped(refusals):
                if text:
                    yield Finding(Level.failed, f"{text} (on {subject.named(ranks)})", name="configuration")
            left_out = ", ".join(check.name for check in CHECKS[1:] if check.needs_config)
            yield Finding(Level.warning, f"for lack of a configuration: {left_out}", name="not checked")
        for check in CHECKS:
            if not (check.needs_config and any(refusals)):
                yield from examine(check, subject)
    except RuntimeError as error:  # of a collective
        text = f"a rank is lost, and the remaining checks with it: {' '.join(str(error).split())}"
        yield Finding(Level.failed, f"{text}; its own log says why", PeerLost.exit_code, "group")


def line(finding: Finding) -> str:
    """Return a finding as it stands on the page, folded if it is long."""
    head = f"{finding.level:<8} {finding.name:<14} "
    folded = textwrap.wrap(finding.text, WIDTH - len(head), break_long_words=False, break_on_hyphens=False)
    return head + f"\n{' ' * len(head)}".join(folded)


def outcome(findings: list[Finding]) -> str:
    """Return the last line of the page."""
    levels = [finding.level for finding in findings]
    failed, warnings, good = (levels.count(level) for level in (Level.failed, Level.warning, Level.ok))
    verdict = "this run would fail, or go wrong" if failed else "nothing would stop this run"
    return f"{failed} failed, {counted(warnings, 'warning')}, {good} ok: {verdict}"


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at the interpreter's exit, gloo's threads may abort a process of several ranks
