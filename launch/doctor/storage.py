"""Checks of the directory that holds all runs: the same for all hosts, writable, large and fast enough.

Holds what concerns places to write to; what a run reads is in `inputs`. It leaves no file behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from pathlib import Path

from launch.doctor.base import Check, Finding, Subject, graded, in_bytes
from launch.doctor.plan import size_of
from pretrain.errors import ConfigError, HeadwaterError, ResourceError
from pretrain.train.agreement import check_directory
from pretrain.train.run_dir.lock import LOCK_FILE

SPEED_BYTES = 2**26  # written and read to measure


def _root(subject: Subject) -> Path:
    return subject.cfg.run.directory.parent


def _claim(subject: Subject) -> str:
    """Choose the name of a directory, and make it on the first rank, with a lock as that of a run has one."""
    name = f".doctor-{secrets.token_hex(8)}"
    if subject.world.is_first:
        path = _root(subject) / name
        try:
            path.mkdir(parents=True)
            (path / LOCK_FILE).write_text(f"{name}\n", encoding="utf-8")
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            rule = f"cannot be written ({error}); choose a directory that every host can write to"
            raise ConfigError(f"run.root={subject.cfg.run.root}: {rule}") from None
    return name


def _agree_on_directory(subject: Subject, name: str) -> None:
    """Refuse ranks that do not see the first one's directory, as the run would."""
    [name, *_] = subject.world.gather(name)
    try:
        check_directory(_root(subject) / name, subject.world)
    finally:
        if subject.world.is_first:
            shutil.rmtree(_root(subject) / name)


def _judge_space(subject: Subject, answers: list[str]) -> list[Finding]:
    free, cfg = shutil.disk_usage(_root(subject)).free, subject.cfg
    text = f"run.root={cfg.run.root}: writable, and the same on all hosts; {in_bytes(free)} free"
    try:
        size = size_of(subject)
    except HeadwaterError:  # which the memory check reports
        return graded(text)
    one = 4 * size.parameters + 8 * size.trainable  # bytes: fp32 weights, and AdamW's two moments
    kept = cfg.checkpoint.keep + 1  # the next is written before the oldest is deleted
    text += f", {in_bytes(kept * one)} taken by {kept} checkpoints of {in_bytes(one)} (checkpoint.keep + 1)"
    fix = ": too little; free some space, choose another run.root, or lower checkpoint.keep"
    return graded(text, failed=fix if free < kept * one else "", code=ResourceError.exit_code)


def _speed(subject: Subject) -> list[float] | None:
    """Return the bytes/s with which this host writes and reads, while all other hosts do the same, as in a save."""
    root = _root(subject)
    if not root.is_dir():  # which the check of the directory reports
        return None
    path = root / f".doctor-{secrets.token_hex(8)}"
    data = os.urandom(min(SPEED_BYTES, shutil.disk_usage(root).free // 4))  # which no file system can compress
    try:
        with path.open("wb", buffering=0) as file:
            start = time.perf_counter()
            file.write(data)
            os.fsync(file.fileno())
            written = time.perf_counter()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or it would be read from memory
        opened = time.perf_counter()
        path.read_bytes()
        return [len(data) / (written - start), len(data) / (time.perf_counter() - opened)]
    finally:
        path.unlink(missing_ok=True)


def _judge_speed(subject: Subject, answers: list[list[float] | None]) -> list[Finding]:
    rates = [answer for answer in answers if answer]
    if not rates:
        return []
    written, read = (min(each) / 1e6 for each in zip(*rates, strict=True))
    return graded(f"written at {written:,.0f} MB/s (with fsync), read at {read:,.0f} MB/s, on the slowest host")


CHECKS = [
    Check("run directory", _claim, _judge_space, _agree_on_directory),
    Check("disk speed", _speed, _judge_speed, per_host=True),
]
