"""Checks of hosts and ranks: who is there, with which libraries, devices and clocks.

Holds no check of files or of what ranks say to each other in a step.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from launch.doctor.base import Check, Finding, Level, Subject, counted, grouped, listed

CLOCK_ROUNDS = 5
CLOCK_WARNING_S, CLOCK_FAILURE_S = 1.0, 60.0  # between a host's clock and that of rank 0


def _judge_hosts(subject: Subject, answers: list[Any]) -> list[Finding]:
    counts = {host: subject.hosts.count(host) for host in dict.fromkeys(subject.hosts)}
    places = [
        f"{host} ({listed([number for number, other in enumerate(subject.hosts) if other == host])})" for host in counts
    ]
    text = f"{counted(subject.world.size, 'rank')} on {counted(len(counts), 'host')}: {', '.join(places)}"
    if len(set(counts.values())) > 1:
        fix = "give each host the same number of ranks, unless this is meant"
        return [Finding("hosts", Level.warning, f"{text}; {fix}")]
    return [Finding("hosts", Level.ok, text)]


def _versions(subject: Subject) -> dict[str, str]:
    from pretrain.train.summary import versions

    return versions()


def _judge_versions(subject: Subject, answers: list[dict[str, str]]) -> list[Finding]:
    findings = []
    for name in answers[0]:
        found = grouped([answer.get(name) for answer in answers])
        if len(found) > 1:
            told = "; ".join(f"{version} on {subject.named(numbers)}" for version, numbers in found)
            text = f"{name} differs: {told}; install one environment everywhere, or share it"
            findings.append(Finding("versions", Level.failed, text))
    text = ", ".join(f"{name} {version}" for name, version in answers[0].items())
    return findings or [Finding("versions", Level.ok, f"the same on {subject.named(range(len(answers)))}: {text}")]


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
    findings = []
    for host in dict.fromkeys(subject.hosts):
        here = [answer for answer, other in zip(answers, subject.hosts, strict=True) if other == host]
        cores = {core for answer in here for core in answer["cores"]}
        threads = sum(answer["threads"] for answer in here)
        if threads > len(cores):
            text = f"{host}: {len(here)} ranks start {threads} threads on {len(cores)} cores and slow each other down"
            fix = f"set OMP_NUM_THREADS={max(1, len(cores) // len(here))}, or start fewer ranks"
            findings.append(Finding("devices", Level.warning, f"{text}; {fix}"))
    threads = sorted({answer["threads"] for answer in answers})
    cores = counted(len(answers[0]["cores"]), "core")
    text = f"CPU: {' or '.join(counted(each, 'thread') for each in threads)} a rank, {cores} for those of rank 0"
    return findings or [Finding("devices", Level.ok, text)]


def _judge_gpus(subject: Subject, answers: list[dict[str, Any]]) -> list[Finding]:
    findings = []
    without = [number for number, answer in enumerate(answers) if "name" not in answer]
    if without:
        text = f"{subject.named(without)} of {len(answers)} see no CUDA device of their own"
        fix = "start as many ranks on a host as it has, and look at CUDA_VISIBLE_DEVICES and the driver there"
        findings.append(Finding("devices", Level.failed, f"{text}; {fix}"))
    present = [answer.get("id") for answer in answers]
    for identity, numbers in grouped([(host, one) for host, one in zip(subject.hosts, present, strict=True)]):
        if identity[1] is not None and len(numbers) > 1:
            text = f"{subject.named(numbers)} share one device; let each see its own (CUDA_VISIBLE_DEVICES, LOCAL_RANK)"
            findings.append(Finding("devices", Level.failed, text))
    kinds = grouped([answer.get("name") for answer in answers])
    told = "; ".join(f"{name} on {subject.named(numbers)}" for name, numbers in kinds if name is not None)
    if len(kinds) > 1 and not without:
        text = f"different devices: {told}; the slowest sets the pace"
        findings.append(Finding("devices", Level.warning, text))
    return findings or [Finding("devices", Level.ok, told)]


def _clock(subject: Subject) -> list[list[float]]:
    """Return when, by its own clock, a rank came to each barrier and when it left."""
    rounds = []
    subject.world.barrier()
    for _ in range(CLOCK_ROUNDS):
        before = time.time()
        subject.world.barrier()
        rounds.append([before, time.time()])
    return rounds


def clock_offset(own: list[list[float]], first: list[list[float]]) -> tuple[float, float]:
    """Return how many seconds a clock is ahead of the first rank's, and the uncertainty of that.

    Nobody leaves a barrier before all have come. So each pair of stays has a moment in common, and bounds the offset
    from both sides; the tightest bounds of all rounds hold.
    """
    low = max(came - left for (came, _), (_, left) in zip(own, first, strict=True))
    high = min(left - came for (_, left), (came, _) in zip(own, first, strict=True))
    return (low + high) / 2, (high - low) / 2


def _judge_clocks(subject: Subject, answers: list[list[list[float]]]) -> list[Finding]:
    speakers = [subject.hosts.index(host) for host in dict.fromkeys(subject.hosts)]
    offsets = {subject.hosts[number]: clock_offset(answers[number], answers[0]) for number in speakers[1:]}
    findings = []
    for host, (ahead, uncertain) in offsets.items():
        text = f"{host} is {ahead:+.3f} s from {subject.hosts[0]} (+- {uncertain:.3f} s); let NTP set its clock"
        if abs(ahead) > CLOCK_FAILURE_S:
            findings.append(Finding("clocks", Level.failed, text))
        elif abs(ahead) > CLOCK_WARNING_S:
            findings.append(Finding("clocks", Level.warning, text))
    if not offsets:
        return [Finding("clocks", Level.ok, "one host, one clock")]
    far, uncertain = max(offsets.values(), key=lambda offset: abs(offset[0]))
    text = f"all within {abs(far) * 1000:.1f} ms (+- {uncertain * 1000:.1f} ms) of {subject.hosts[0]}"
    return findings or [Finding("clocks", Level.ok, text)]


CHECKS = [
    Check("hosts", lambda subject: None, _judge_hosts, needs_config=False),
    Check("versions", _versions, _judge_versions, needs_config=False),
    Check("devices", _device, _judge_devices, needs_config=False),
    Check("clocks", _clock, _judge_clocks, needs_config=False),
]
