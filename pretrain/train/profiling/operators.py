"""The table of the costliest operators of profiled steps: from a profiler's events to a file, and to lines of the log.

Holds no profiler, which is in `base`. Free of torch, for reports.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pretrain.errors import ConfigError
from pretrain.files import read_json

PROFILE = "profile"  # directory in a run
COSTLIEST = 10  # operators of a table
STEP_SPAN = "ProfilerStep#"  # begins the name of the span of a step, as torch and those that read its traces spell it
NO_OPERATOR = "(kernels of no operator)"
_TABLE = re.compile(r"steps-(\d+)-(\d+)/rank-(\d+)\.json")


class Operator(TypedDict):
    """An operator over all profiled steps."""

    name: str
    calls: int
    self_ms: float  # without the operators that it calls
    share: float  # of the time of all operators, 0 to 1


class OperatorTable(TypedDict):
    """What `rank-N.json` holds: where the time of some steps went."""

    device: str  # "cuda": self times are those of kernels; "cpu": of the processor
    steps: int  # whole steps that were profiled
    wall_ms: float  # from the start to the end of each, added up
    total_ms: float  # self times of all operators, added up
    operators: list[Operator]  # the costliest first


class Found(NamedTuple):
    """A table in a run directory."""

    first: int  # the window, in optimizer steps
    last: int
    rank: int
    table: OperatorTable


def operator_table(events: Iterable[Any], device: str) -> OperatorTable:
    """Return the costliest operators within the spans of steps among `events` (`torch.autograd` `FunctionEvent`s).

    What runs between the spans, such as an evaluation, does not count. On "cuda" an operator costs the time of the
    kernels that it launched, whenever they ran.
    """
    events = list(events)
    on_host = [event for event in events if event.device_type.name == "CPU"]
    spans = [event.time_range for event in on_host if event.trace_name.startswith(STEP_SPAN)]
    on_device = device != "cpu"
    calls, self_us = defaultdict[str, int](int), defaultdict[str, float](float)
    launched_us = 0.0
    for event in on_host:
        cost = event.self_device_time_total if on_device else event.self_cpu_time_total
        launched_us += cost
        within = any(span.start <= event.time_range.start and event.time_range.end <= span.end for span in spans)
        if within and not event.trace_name.startswith(STEP_SPAN):
            calls[event.name] += 1
            self_us[event.name] += cost
    if on_device:
        kernels = [event for event in events if event.device_type.name != "CPU" and not event.is_user_annotation]
        unclaimed = sum(event.time_range.elapsed_us() for event in kernels) - launched_us
        if unclaimed > 0.5:  # rounding aside: e.g. those of a captured graph
            self_us[NO_OPERATOR] = unclaimed
    total = sum(self_us.values())
    costliest = sorted(self_us, key=lambda name: self_us[name], reverse=True)[:COSTLIEST]
    return {
        "device": device,
        "steps": len(spans),
        "wall_ms": sum(span.elapsed_us() for span in spans) / 1e3,
        "total_ms": total / 1e3,
        "operators": [
            {"name": name, "calls": calls[name], "self_ms": self_us[name] / 1e3, "share": self_us[name] / total}
            for name in costliest
            if self_us[name] > 0
        ],
    }


def table_path(run: Path, first: int, last: int, rank: int) -> Path:
    """Return where a rank's table goes; its other files are named alike, with other endings."""
    return run / PROFILE / f"steps-{first}-{last}" / f"rank-{rank}.json"


def tables_of(run: Path) -> list[Found]:
    """Return the tables in a run directory, by window and rank. Raises `ConfigError` for one that cannot be read."""
    found = []
    for path in (run / PROFILE).glob("*/*.json"):
        if named := _TABLE.fullmatch(path.relative_to(run / PROFILE).as_posix()):
            try:
                first, last, rank = map(int, named.groups())
                found.append(Found(first, last, rank, read_json(path, OperatorTable)))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path}: not readable ({error}); delete it, or train those steps again") from None
    return sorted(found, key=lambda each: each[:3])


def what_is_counted(table: OperatorTable) -> str:
    """Say what the times of a table are, and how much of a step they make up."""
    whose = "on the processor" if table["device"] == "cpu" else "of kernels on the device"
    return (
        f"self times {whose}, a step: {table['total_ms'] / table['steps']:,.1f} ms in all operators, "
        f"{table['wall_ms'] / table['steps']:,.1f} ms from the start to the end of a profiled step"
    )


def as_lines(table: OperatorTable) -> str:
    """Return a table as aligned lines: milliseconds and calls a step, share, name."""
    steps = table["steps"]
    rows = [
        f"{each['self_ms'] / steps:>12,.2f}  {each['calls'] / steps:>8,.0f}  {each['share']:>6.1%}  {each['name']}"
        for each in table["operators"]
    ]
    return "\n".join([f"{'ms a step':>12}  {'calls':>8}  {'share':>6}  operator", *rows])
