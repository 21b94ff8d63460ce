"""Checks of the directory that holds all runs: one for all hosts, writable, large and fast enough.

Holds what concerns places to write to; what a run reads is in `inputs`. It leaves no file behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from launch.doctor.base import Check, Finding, Level, Subject, in_bytes
from launch.doctor.plan import size_of
from pretrain.errors import HeadwaterError, ResourceError

WAIT_S = 10.0  # for what another host wrote: file systems on a network show it late
POLL_S = 0.1  # seconds between two looks
SPEED_BYTES = 2**28  # written and read to measure
SPEED_S = 10.0  # after so many seconds writing, and reading, ends
CHUNK_BYTES = 2**23


def _root(subject: Subject) -> Path:
    return subject.cfg.run.directory.parent


def _shared(subject: Subject) -> dict[str, Any] | None:
    """Return what is wrong with the directory as this host sees it, and the space that it has left."""
    root, world = _root(subject), subject.world
    [name, *_] = world.gather(f".doctor-{secrets.token_hex(8)}")
    problem = _leave(root / name) if world.is_first else ""
    world.barrier()
    if subject.speaks and not world.is_first:
        problem = _find(root / name, root / f"{name}-{world.rank}")
    world.barrier()
    if world.is_first and not problem:
        (root / name).unlink()
    if not subject.speaks:
        return None
    return {"problem": problem, "free": 0 if problem else shutil.disk_usage(root).free}


def _leave(path: Path) -> str:
    """Write a file for the other hosts to find; return what is wrong."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    except OSError as error:
        return f"cannot be written ({error}); choose a directory that every host can write to"
    return ""


def _find(path: Path, own: Path) -> str:
    """Wait for the first rank's file, and write one beside it; return what is wrong."""
    end = time.monotonic() + WAIT_S
    try:
        while not path.is_file():
            if time.monotonic() > end:
                apart = f"shows nothing that rank 0 wrote there, in {WAIT_S:.0f} s: another directory"
                return f"{apart}; choose one on a file system that all hosts share, by its whole path"
            time.sleep(POLL_S)
        own.write_text(own.name)
        own.unlink()
    except OSError as error:
        return f"cannot be written ({error}); choose a directory that every host can write to"
    return ""


def _judge_shared(subject: Subject, answers: list[dict[str, Any] | None]) -> list[Finding]:
    name, key = "run directory", f"run.root={subject.cfg.run.root}"
    seen = [(number, answer["problem"]) for number, answer in enumerate(answers) if answer]
    findings = [
        Finding(name, Level.failed, f"{key}: on {subject.named([number])} it {problem}")
        for number, problem in seen
        if problem
    ]
    if findings:
        return findings[:1] if answers[0] and answers[0]["problem"] else findings  # without rank 0's file all miss it
    free = min(answer["free"] for answer in answers if answer)
    text = f"{key}: writable, and the same on all hosts; {in_bytes(free)} free"
    try:
        one = size_of(subject).checkpoint_bytes
    except HeadwaterError:  # which the memory check tells
        return [Finding(name, Level.ok, text)]
    kept = subject.cfg.checkpoint.keep + 1  # the next is written before the oldest goes
    text += f", {in_bytes(kept * one)} taken by {kept} checkpoints of {in_bytes(one)} (checkpoint.keep + 1)"
    if free < kept * one:
        fix = "free some space, choose another run.root, or lower checkpoint.keep"
        return [Finding(name, Level.failed, f"{text}: too little; {fix}", ResourceError.exit_code)]
    return [Finding(name, Level.ok, text)]


def _speed(subject: Subject) -> list[float] | None:
    """Return the bytes/s with which this host writes and reads, all hosts at the same time as when a run saves."""
    root = _root(subject)
    path = root / f".doctor-{secrets.token_hex(8)}"
    subject.world.barrier()
    if not subject.speaks or not os.access(root, os.W_OK):  # which the check of the directory tells
        return None
    try:
        size = min(SPEED_BYTES, shutil.disk_usage(root).free // 4)
        return [_write(path, size), _read(path)]
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, size: int) -> float:
    chunk = os.urandom(CHUNK_BYTES)  # which no file system can compress
    written, start = 0, time.monotonic()
    with path.open("wb", buffering=0) as file:
        while written < size and time.monotonic() - start < SPEED_S:
            written += file.write(chunk)
        os.fsync(file.fileno())
        seconds = time.monotonic() - start
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or it would be read from memory
    return written / seconds


def _read(path: Path) -> float:
    read, start = 0, time.monotonic()
    with path.open("rb", buffering=0) as file:
        while (chunk := file.read(CHUNK_BYTES)) and time.monotonic() - start < SPEED_S:
            read += len(chunk)
    return read / max(time.monotonic() - start, 1e-9)


def _judge_speed(subject: Subject, answers: list[list[float] | None]) -> list[Finding]:
    rates = [answer for answer in answers if answer]
    if not rates:
        return []
    written, read = (min(each) for each in zip(*rates, strict=True))
    text = f"written at {written / 1e6:,.0f} MB/s (with fsync), read at {read / 1e6:,.0f} MB/s, on the slowest host"
    return [Finding("disk speed", Level.ok, text)]


CHECKS = [Check("run directory", _shared, _judge_shared), Check("disk speed", _speed, _judge_speed)]
