"""What a check is: every rank looks at its own place, the first one judges what all have seen.

Holds the types and the one way through a check; what is checked is in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import torch

from pretrain.distributed.world import World
from pretrain.errors import ConfigError, HeadwaterError

PATIENCE = timedelta(minutes=3)  # for ranks that do not come, and for each collective

T = TypeVar("T")


class Level(StrEnum):
    """How bad a finding is."""

    ok = "ok"
    warning = "warning"
    failed = "FAILED"


class Finding(NamedTuple):
    """A line of the page."""

    name: str  # of the check
    level: Level
    text: str  # what was found and, unless it is ok, what to do
    code: int = 2  # exit code that a failure stands for


@dataclass(frozen=True, eq=False)
class Subject:
    """What is looked at: a program with its configuration, on the ranks that would run it."""

    program: str  # "pretrain" or "finetune"
    cfg: Any  # its typed configuration; None: it does not compose on some rank
    ranks: int  # of the run; not those of `world` where the group does not form
    world: World  # over gloo, on whatever the ranks compute
    hosts: list[str]  # of each rank
    device: torch.device  # of this rank: a GPU if each rank has one for itself

    @property
    def speaks(self) -> bool:
        """Whether this rank looks at what is one for its host: files, clocks, disks."""
        return self.hosts.index(self.hosts[self.world.rank]) == self.world.rank

    def named(self, numbers: Sequence[int]) -> str:
        """Name ranks, with their hosts if there are several."""
        if len(numbers) == self.world.size:
            return "all ranks" if self.world.size > 1 else "the only rank"
        hosts = ", ".join(dict.fromkeys(self.hosts[number] for number in numbers))
        return f"{listed(numbers)} ({hosts})" if len(set(self.hosts)) > 1 else listed(numbers)


class Check(NamedTuple):
    """Something that can be wrong.

    `look` runs on every rank, and may use collectives if it does so on each; it returns what JSON can hold, or raises.
    `judge` runs on the first rank, with the answers of all; None where a rank had nothing to say.
    """

    name: str
    look: Callable[[Subject], Any]
    judge: Callable[[Subject, list[Any]], list[Finding]]
    needs_config: bool = True


def examine(check: Check, subject: Subject) -> list[Finding]:
    """Carry out a check on all ranks; return what was found, on the first rank alone.

    A rank on which looking fails says so, and goes on with the others to the next check.
    """
    seen, refusal = None, None
    try:
        seen = check.look(subject)
    except Exception as error:  # whatever it is, it is a finding
        refusal = _told(error)
    answers = subject.world.gather([seen, refusal])
    if not subject.world.is_first:
        return []
    refusals = [(refusal, numbers) for refusal, numbers in grouped([refusal for _, refusal in answers]) if refusal]
    if not refusals:
        try:
            return check.judge(subject, [seen for seen, _ in answers])
        except Exception as error:
            refusals = [(_told(error), [0])]
    return [
        Finding(check.name, Level.failed, f"{text} (on {subject.named(numbers)})", code)
        for (text, code), numbers in refusals
    ]


def _told(error: Exception) -> tuple[str, int]:
    """Return an error in words, and the exit code that it stands for."""
    if isinstance(error, HeadwaterError):
        return str(error), error.exit_code
    return f"{type(error).__name__}: {error}", ConfigError.exit_code


def grouped(values: Sequence[T]) -> list[tuple[T, list[int]]]:
    """Return the different values, each with the places where it stands."""
    found: list[tuple[T, list[int]]] = []
    for number, value in enumerate(values):
        for other, numbers in found:
            if other == value:
                numbers.append(number)
                break
        else:
            found.append((value, [number]))
    return found


def counted(number: int, thing: str) -> str:
    """Write a number of things: "1 rank", "2,048 ranks"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(numbers: Sequence[int]) -> str:
    """Write ascending numbers of ranks: "rank 5", "ranks 0 to 3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spans = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'' if len(numbers) == 1 else 's'} {', '.join(spans)}"


def in_bytes(size: float) -> str:
    """Write a number of bytes with the unit that fits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} bytes"
