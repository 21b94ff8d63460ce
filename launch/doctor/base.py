"""What a check is: every rank looks at its own machine, and the first rank judges what all of them saw.

Holds the types, and how a check is carried out; the checks themselves are in the other files of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import torch

from pretrain.distributed.world import World
from pretrain.errors import ConfigError, HeadwaterError
from pretrain.train.agreement import SHOWN_RANKS

PATIENCE = timedelta(minutes=3)  # to wait for missing ranks, and for each collective

T = TypeVar("T")


class Level(StrEnum):
    """How bad a finding is."""

    ok = "ok"
    warning = "warning"
    failed = "FAILED"


class Finding(NamedTuple):
    """What a check found: a line of the page."""

    level: Level
    text: str  # with what to do about it, unless it is ok
    code: int = ConfigError.exit_code  # of a failure
    name: str = ""  # of the check, which `examine` fills in


def graded(text: str, *, failed: str = "", warning: str = "", code: int = ConfigError.exit_code) -> list[Finding]:
    """Return that all is well as `text` says, or else that, with what is wrong and what to do about it."""
    if failed:
        return [Finding(Level.failed, text + failed, code)]
    return [Finding(Level.warning, text + warning)] if warning else [Finding(Level.ok, text)]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is examined: a program with its configuration, on the ranks that would run it."""

    program: str  # "pretrain" or "finetune"
    cfg: Any  # its typed configuration; None where some rank cannot compose it
    world: World  # over gloo, whatever device the ranks compute on
    hosts: list[str]  # of each rank
    device: torch.device  # of this rank: a GPU if every rank has one of its own

    def named(self, ranks: Sequence[int]) -> str:
        """Name ranks, with their hosts if there are several."""
        if len(ranks) == self.world.size:
            return "all ranks" if self.world.size > 1 else "the only rank"
        hosts = ", ".join(dict.fromkeys(self.hosts[rank] for rank in ranks))
        return f"{ranks_text(ranks)} ({hosts})" if len(set(self.hosts)) > 1 else ranks_text(ranks)


def seen_by_first(subject: Subject, answers: list[Any]) -> list[Finding]:
    """Judge that all is well, in the words of the first rank; None says nothing."""
    return [] if answers[0] is None else [Finding(Level.ok, answers[0])]


class Check(NamedTuple):
    """Something that can be wrong.

    `look` runs on every rank and may use collectives, provided that all ranks do. It returns what JSON can hold, or
    raises: any error is a failure. `judge` runs on the first rank, with the answers of all ranks.
    """

    name: str
    look: Callable[[Subject], Any]
    judge: Callable[[Subject, list[Any]], Iterable[Finding]] = seen_by_first
    agree: Callable[[Subject, Any], None] | None = None  # a collective that refuses ranks whose answers do not fit
    per_host: bool = False  # one rank of each host looks, and the others there have its answer
    needs_config: bool = True


def examine(check: Check, subject: Subject) -> list[Finding]:
    """Carry out a check on all ranks; return the findings, on the first rank alone.

    A rank whose look fails reports that and takes part in the next check.
    """
    world, hosts = subject.world, subject.hosts
    answer, error = None, None
    try:
        if not check.per_host or hosts.index(hosts[world.rank]) == world.rank:
            answer = check.look(subject)
    except Exception as raised:  # whatever it is, it is a finding
        error = _described(raised)
    gathered = world.gather([answer, error])
    answers = [gathered[hosts.index(host) if check.per_host else rank][0] for rank, host in enumerate(hosts)]
    failures = [
        Finding(Level.failed, f"{error[0]} (on {subject.named(ranks)})", error[1])
        for error, ranks in grouped([error for _, error in gathered])
        if error
    ]
    try:
        if check.agree and not failures:
            check.agree(subject, answers[world.rank])
        findings = failures or (check.judge(subject, answers) if world.is_first else [])
        named = [finding._replace(name=check.name) for finding in findings]
    except Exception as raised:
        named = [Finding(Level.failed, *_described(raised), name=check.name)]
    return named if world.is_first else []


def _described(error: Exception) -> tuple[str, int]:
    """Return an error's message and the exit code that it stands for."""
    if isinstance(error, HeadwaterError):
        return str(error), error.exit_code
    return f"{type(error).__name__}: {error}", ConfigError.exit_code


def grouped(values: Sequence[T]) -> list[tuple[T, list[int]]]:
    """Return the different values, each with the indices at which it stands."""
    different = [value for index, value in enumerate(values) if value not in values[:index]]  # they may be unhashable
    return [(value, [index for index, other in enumerate(values) if other == value]) for value in different]


def counted(number: int, thing: str) -> str:
    """Write a number of things: "1 rank", "2,048 ranks"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def ranks_text(ranks: Sequence[int]) -> str:
    """Write ranks, the first few by number: "rank 5", "ranks 0, 1, 2 and 2,045 more"."""
    shown = ", ".join(map(str, ranks[:SHOWN_RANKS]))
    more = f" and {len(ranks) - SHOWN_RANKS:,} more" if len(ranks) > SHOWN_RANKS else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {shown}{more}"


def in_bytes(size: float) -> str:
    """Write a number of bytes with the unit that fits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} bytes"
