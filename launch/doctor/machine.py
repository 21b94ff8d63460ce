"""Checks of hosts and ranks: who is there, with which software, devices and clocks.

Holds no check of files, nor of the network between ranks.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from launch.doctor.base import Check, Finding, Level, Subject, counted, graded, grouped, ranks_text
from pretrain.distributed import environment
from pretrain.distributed.environment import Choice
from pretrain.distributed.world import pci_of
from pretrain.train.agreement import check_agreement, software
from pretrain.train.summary import versions

CLOCK_ROUNDS = 5
CLOCK_WARNING_S, CLOCK_FAILURE_S = 1.0, 60.0  # between a host's clock and that of rank 0


def _judge_hosts(subject: Subject, answers: list[None]) -> list[Finding]:
    places = dict(grouped(subject.hosts))
    listed = ", ".join(f"{host} ({ranks_text(ranks)})" for host, ranks in places.items())
    text = f"{counted(subject.world.size, 'rank')} on {counted(len(places), 'host')}: {listed}"
    uneven = len({len(ranks) for ranks in places.values()}) > 1
    return graded(text, warning="; give each host the same number of ranks, unless this is intended" if uneven else "")


def _versions(subject: Subject) -> str:
    numbers = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"the same code and libraries on {subject.named(range(subject.world.size))}: {numbers}"


def _agree_on_versions(subject: Subject, answer: str) -> None:
    check_agreement(software(sorted({"pretrain", subject.program})), subject.world)


def _device(subject: Subject) -> dict[str, Any]:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    found: dict[str, Any] = {"gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0, "local": local}
    if local < found["gpus"]:
        properties = torch.cuda.get_device_properties(local)
        capability = f"compute capability {properties.major}.{properties.minor}"
        return found | {"name": f"{properties.name}, {capability}", "id": str(properties.uuid)}
    return found | {"cores": sorted(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}


def _judge_devices(subject: Subject, answers: list[dict[str, Any]]) -> list[Finding]:
    if any(answer["gpus"] for answer in answers):
        return _judge_gpus(subject, answers)
    findings: list[Finding] = []
    for host, ranks in grouped(subject.hosts):
        cores = {core for rank in ranks for core in answers[rank]["cores"]}
        threads = sum(answers[rank]["threads"] for rank in ranks)
        if threads > len(cores):
            text = f"{host}: {len(ranks)} ranks start {threads} threads on {len(cores)} cores and slow each other down"
            fix = f"set OMP_NUM_THREADS={max(1, len(cores) // len(ranks))}, or start fewer ranks"
            findings.append(Finding(Level.warning, f"{text}; {fix}"))
    each = " or ".join(counted(number, "thread") for number in sorted({answer["threads"] for answer in answers}))
    text = f"CPU: {each} a rank, {counted(len(answers[0]['cores']), 'core')} for those of rank 0"
    return findings or [Finding(Level.ok, text)]


def _judge_gpus(subject: Subject, answers: list[dict[str, Any]]) -> list[Finding]:
    findings: list[Finding] = []
    without = [rank for rank, answer in enumerate(answers) if "name" not in answer]
    if without:
        text = f"{subject.named(without)} of {len(answers)} see no CUDA device of their own"
        fix = "start as many ranks on a host as it has, and look at CUDA_VISIBLE_DEVICES and the driver there"
        findings.append(Finding(Level.failed, f"{text}; {fix}"))
    devices = [(host, answer.get("id")) for host, answer in zip(subject.hosts, answers, strict=True)]
    for (_, device), ranks in grouped(devices):
        if device is not None and len(ranks) > 1:
            fix = "let each see its own (CUDA_VISIBLE_DEVICES, LOCAL_RANK)"
            findings.append(Finding(Level.failed, f"{subject.named(ranks)} share one device; {fix}"))
    kinds = grouped([answer.get("name") for answer in answers])
    text = "; ".join(f"{name} on {subject.named(ranks)}" for name, ranks in kinds if name is not None)
    if len(kinds) > 1 and not without:
        findings.append(Finding(Level.warning, f"different devices: {text}; the slowest sets the pace"))
    return findings or [Finding(Level.ok, text)]


def _clock(subject: Subject) -> list[list[float]]:
    """Return, by this rank's own clock, when it came to each barrier and when it left."""
    rounds = []
    subject.world.barrier()
    for _ in range(CLOCK_ROUNDS):
        before = time.time()
        subject.world.barrier()
        rounds.append([before, time.time()])
    return rounds


def clock_offset(own: list[list[float]], first: list[list[float]]) -> tuple[float, float]:
    """Return how many seconds a clock is ahead of the first rank's, and the uncertainty of that.

    No rank leaves a barrier before all have come. So each pair of stays has a moment in common, which bounds the offset
    from both sides; the tightest bounds of all rounds count.
    """
    low = max(came - left for (came, _), (_, left) in zip(own, first, strict=True))
    high = min(left - came for (_, left), (came, _) in zip(own, first, strict=True))
    return (low + high) / 2, (high - low) / 2


def _judge_clocks(subject: Subject, answers: list[list[list[float]]]) -> list[Finding]:
    first, *others = grouped(subject.hosts)
    if not others:
        return [Finding(Level.ok, "one host, one clock")]
    offsets = {host: clock_offset(answers[ranks[0]], answers[0]) for host, ranks in others}
    findings: list[Finding] = []
    for host, (ahead, uncertain) in offsets.items():
        if abs(ahead) > CLOCK_WARNING_S:
            level = Level.failed if abs(ahead) > CLOCK_FAILURE_S else Level.warning
            text = f"{host} is {ahead:+.3f} s from {first[0]} (+- {uncertain:.3f} s); let NTP set its clock"
            findings.append(Finding(level, text))
    far, uncertain = max(offsets.values(), key=lambda offset: abs(offset[0]))
    text = f"all within {abs(far) * 1000:.1f} ms (+- {uncertain * 1000:.1f} ms) of {first[0]}"
    return findings or [Finding(Level.ok, text)]


def _surroundings(subject: Subject) -> list[Choice]:
    """Return what a run sets around a process, or leaves alone, as it would be set here."""
    if subject.device.type == "cpu":
        return environment.prepare(on_gpu=False)
    return [*environment.prepare(on_gpu=True), environment.bind_to_node(pci_of(subject.device))]


def _judge_surroundings(subject: Subject, answers: list[Any]) -> list[Finding]:
    findings = []
    for name, value, reason, own in answers[0]:
        set_by = " (set by you)" if own else ""
        slow = name == environment.CONNECTIONS and value == "1"
        findings += graded(f"{name}={value}{set_by}: {reason}", warning="; unset it" if slow else "")
    return findings


CHECKS = [
    Check("hosts", lambda subject: None, _judge_hosts, needs_config=False),
    Check("versions", _versions, agree=_agree_on_versions, needs_config=False),
    Check("devices", _device, _judge_devices, needs_config=False),
    Check("environment", _surroundings, _judge_surroundings, needs_config=False),
    Check("clocks", _clock, _judge_clocks, needs_config=False),
]
