"""`python -m launch.doctor PROGRAM overrides...`: look at everything that a run will need, and print one page.

Holds the door, the group of ranks and the page; the checks are in the files beside this one. Started like the ranks of
a run: by torchrun, by `launch`, or alone.
"""

from __future__ import annotations

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
from pretrain.compose import compose_command_line
from pretrain.distributed.world import World, rank, world_size
from pretrain.errors import HeadwaterError, PeerLost, TimedOut
from pretrain.registry import typed

CHECKS = [*plan.CHECKS, *machine.CHECKS, *collectives.CHECKS, *storage.CHECKS, *inputs.CHECKS]
WIDTH = 120  # characters of the page


def main() -> int:
    """Compose, join, examine, print; return the exit code of the first failure, 0 without one."""
    program, *overrides = sys.argv[1:] or [""]
    if program not in PROGRAMS:
        print("python -m launch.doctor pretrain|finetune overrides...", file=sys.stderr)
        return 2
    sys.argv[1:] = overrides
    try:
        composed, refusal = compose_command_line(PROGRAMS[program]), None
        if composed is None:  # after --help, --cfg and the like
            return 0
        cfg = typed(composed)
    except HeadwaterError as error:
        cfg, refusal = None, str(error)
    trouble = join()
    if trouble and rank() > 0:
        print(f"rank {rank()}: {trouble}", file=sys.stderr)
        return TimedOut.exit_code
    world = World(rank(), 1 if trouble else world_size(), torch.device("cpu"))
    findings = [Finding("group", Level.failed, trouble, TimedOut.exit_code)] if trouble else []
    if world.is_first:
        print(f"doctor: {program} on {counted(world_size(), 'rank')}\n", *map(line, findings), sep="\n", flush=True)
    try:
        for finding in examination(program, cfg, refusal, world):
            findings.append(finding)
            print(line(finding), flush=True)  # now: if a library takes the process down, the page says how far it came
    except RuntimeError as error:  # of a collective
        told = f"a rank is lost, and the checks that follow with it: {' '.join(str(error).split())}"
        lost = Finding("group", Level.failed, f"{told}; its own log says why", PeerLost.exit_code)
        findings.append(lost)
        print(line(lost), file=sys.stdout if world.is_first else sys.stderr, flush=True)
        if not world.is_first:
            return PeerLost.exit_code
    if not world.is_first:
        return 0
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
        told = f"the {world_size()} ranks do not find each other at {place}: {' '.join(str(error).split())}"
        return f"{told}; check that all of them were started, and the network (GLOO_SOCKET_IFNAME names the interface)"
    return None


def examination(program: str, cfg: Any, refusal: str | None, world: World) -> Iterator[Finding]:
    """Carry out all checks, without a configuration on every rank those that need none; yield what the first found."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own_gpu = torch.cuda.is_available() and local < torch.cuda.device_count()
    places = world.gather([host, own_gpu, refusal])
    device = torch.device("cuda", local) if all(has for _, has, _ in places) else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    refusals = [(text, numbers) for text, numbers in grouped([text for *_, text in places]) if text is not None]
    subject = Subject(program, None if refusals else cfg, world_size(), world, [name for name, *_ in places], device)
    if refusals and world.is_first:
        for text, numbers in refusals:
            yield Finding("configuration", Level.failed, f"{text} (on {subject.named(numbers)})")
        left_out = ", ".join(check.name for check in CHECKS[1:] if check.needs_config)
        yield Finding("not checked", Level.warning, f"for want of a configuration: {left_out}")
    for check in CHECKS:
        if not (check.needs_config and refusals):
            yield from examine(check, subject)


def line(finding: Finding) -> str:
    """Return a finding as it stands on the page, folded if it is long."""
    head = f"{finding.level:<8} {finding.name:<14} "
    return textwrap.fill(finding.text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def outcome(findings: list[Finding]) -> str:
    """Return what the page comes to."""
    levels = [finding.level for finding in findings]
    failed, warnings, good = (levels.count(level) for level in (Level.failed, Level.warning, Level.ok))
    told = "this run would fail, or go wrong" if failed else "nothing would stop this run"
    return f"{failed} failed, {counted(warnings, 'warning')}, {good} ok: {told}"


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of gloo may abort a process of several ranks while the interpreter is taken down
