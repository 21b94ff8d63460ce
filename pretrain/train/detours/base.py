"""Detours of a run: ranges of its data that it skips for good, and the step to which it went back for each.

Holds the entries, their arithmetic and the file that keeps them; what a rewind does to checkpoints is in `rewinding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from pretrain.data.course import Course, Size, Skip
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files import read_json, replace_file, sealed
from pretrain.train.run_dir.base import DETOURS_FILE

DETOURS = "detours"  # how fingerprints call them
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Detour:
    """A range of data steps that a run skips, for good, from one of its steps on."""

    step: int  # optimizer steps taken where the run goes on with it: those of the checkpoint that it went back to
    first: int  # the first data step that is skipped
    end: int  # the first data step after the range
    reason: str
    automatic: bool  # whether the run took it by itself


@dataclass(frozen=True, kw_only=True)
class _File:
    format: int
    detours: list[Detour]


def read_detours(run: Path) -> tuple[Detour, ...]:
    """Return the detours of a run, in the order in which they were taken; none where there is no file.

    Raises `CheckpointError` for a file that is damaged, changed or of a later version.
    """
    path = run / DETOURS_FILE
    try:
        detours = tuple(read_json(path, _File, newest=FORMAT).detours)
        for number, detour in enumerate(detours):
            if wrong := fault(detours[:number], detour):
                raise ValueError(f"detours[{number}]: {wrong}")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        rule = "which data the run has skipped is not known without it; restore it"
        raise CheckpointError(f"{path}: not readable ({error}); {rule}") from None
    return detours


def add_detour(run: Path, detour: Detour) -> None:
    """Add a detour to the file of a run. Raises `ConfigError` for one that would change data already trained on."""
    before = read_detours(run)
    if wrong := fault(before, detour):
        raise ConfigError(f"{run}: {wrong}")
    write_detours(run, (*before, detour))


def write_detours(run: Path, detours: Sequence[Detour]) -> None:
    """Write the file of a run; none without detours."""
    if not detours:
        (run / DETOURS_FILE).unlink(missing_ok=True)
        return
    content = {"format": FORMAT, "detours": [asdict(each) for each in detours]}
    replace_file(run / DETOURS_FILE, [sealed(content)])


def fault(before: Sequence[Detour], detour: Detour) -> str | None:
    """Say why a detour cannot follow others, None if it can."""
    shown, begins = f"skip {detour.first}:{detour.end}", data_step(before, max(detour.step, 0))
    if detour.step < 0 or detour.first >= detour.end:
        return f"{shown} from step {detour.step}: needs a step from 0 on, and FIRST:END with END after FIRST"
    if detour.first < begins:
        rule = f"step {detour.step} has trained on the data steps before {begins}; go back further, or skip later ones"
        return f"{shown}: begins before data step {begins}; {rule}"
    if any(skip.first <= detour.first and detour.end <= skip.end for skip in skipped(before)):
        return f"{shown}: is skipped already; name other data steps"
    return None


def skipped(detours: Sequence[Detour]) -> tuple[Skip, ...]:
    """Return what all detours skip together: ranges in order, those joined that overlap or touch."""
    ranges = sorted((detour.first, detour.end) for detour in detours)
    reached = accumulate((end for _, end in ranges), max)
    joined: list[Skip] = []
    for (first, _), end in zip(ranges, reached, strict=True):
        if joined and first <= joined[-1].end:
            joined[-1] = Skip(joined[-1].first, end)
        else:
            joined.append(Skip(first, end))
    return tuple(joined)


def data_step(detours: Sequence[Detour], step: int) -> int:
    """Return the data step that the optimizer step after `step` others takes, behind detours."""
    return Course((Size(0, 1),), skipped(detours)).data_step(step)


def fingerprint(detours: Sequence[Detour]) -> dict[str, Any]:
    """Return what a resumed run must find unchanged."""
    return {DETOURS: [[each.step, each.first, each.end] for each in detours]}


def taken_up(saved: dict[str, Any], now: Sequence[Sequence[int]]) -> list[Any]:
    """Return the detours of a saved step, and behind them those that began there or later: `now`, if no other differs.

    `saved` is the state of a step, `now` the fingerprint of the run's detours. Those of a later step cannot have been
    known, and change no data before it.
    """
    before = saved.get("resume", {}).get(DETOURS, [])
    if not isinstance(before, list):
        return before
    later = now[len(before) :]
    follows = [*before, *later] == [*now] and all(step >= saved["step"] for step, *_ in later)
    return [*now] if follows else before
