"""`python -m pretrain.report.listing [ROOT]`, or `headwater runs`: the runs below a folder, one line each.

Holds what a line says. It comes from `run.json`, the lock and single lines of `metrics.jsonl` and `config.yaml`: five
hundred runs take a second or two. Free of torch.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.commands import command
from pretrain.errors import ConfigError, HeadwaterError
from pretrain.report.history import facts_of, outcome
from pretrain.settings.options import CommandParser
from pretrain.tracking.jsonl import METRICS_FILE, last_record, to_json
from pretrain.train.run_dir.base import CHECKPOINTS, LOG_FILE
from pretrain.train.run_dir.lock import LOCK_FILE, is_locked
from pretrain.train.run_dir.record import CONFIG_FILE, RECORD_FILE, program_of

UNKNOWN = "-"
SCRIPT = Path("slurm", "job.sh")  # what `launch slurm` leaves of a run that has not begun
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(kw_only=True)
class Listed:
    """What is known of one run."""

    name: str
    path: Path
    program: str | None = None  # "pretrain" or "finetune"
    state: str = "damaged"  # or running, waiting (for Slurm), done, preempted, interrupted, failed, killed
    why: str = ""  # of a run that failed, was killed or is damaged
    exit: int | None = None  # its exit code
    step: int | None = None  # of the last logged line
    planned: int | None = None  # steps of the whole run, where its configuration says so
    saved: int | None = None  # its newest checkpoint
    loss: float | None = None  # in training, of the last logged line
    metric: str = "loss"  # held out, which chooses the best step
    value: float | None = None  # of the metric
    value_step: int | None = None  # the best step where the run recorded one, else that of its last evaluation
    bytes: int = 0  # of all its files
    changed: float = 0.0  # when it last wrote, in seconds since 1970


def runs(root: str | Path = "runs") -> list[Listed]:
    """Return the runs below a folder, those first that wrote last.

    A directory that cannot be read, or holds something else than a run wrote, is listed as damaged. Raises
    `ConfigError` if there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; name the one that holds runs (run.root, `runs` by default)")
    unreadable: list[Listed] = []

    def cannot_be_read(error: OSError) -> None:
        path = Path(str(error.filename))
        unreadable.append(Listed(name=_name(path, root), path=path, why=error.strerror or ""))

    listed = [_listed(folder, root) for folder in run_folders(root, cannot_be_read)]
    return sorted([*listed, *unreadable], key=lambda run: (-run.changed, run.name))


def run_folders(root: Path, cannot_be_read: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the directories of runs, also behind links; nothing below a run is looked at."""
    seen: set[str] = set()
    for place, folders, files in os.walk(root, onerror=cannot_be_read, followlinks=True):
        folder, real = Path(place), os.path.realpath(place)
        begun = RECORD_FILE in files or METRICS_FILE in files or {LOCK_FILE, LOG_FILE} <= {*files}
        shared = folder.name == "doctor" or folder.name.endswith("-sweep")  # scripts of no single run
        if real in seen:
            folders.clear()
        elif begun or ("slurm" in folders and (folder / SCRIPT).is_file() and not shared):
            folders.clear()
            yield folder
        seen.add(real)


def _listed(folder: Path, root: Path) -> Listed:
    run = Listed(name=_name(folder, root), path=folder)
    try:
        run.bytes, run.changed = _bytes_in(folder), _changed(folder)
        run.program, settings = program_of(folder), _text(folder / CONFIG_FILE)
        run.saved = max(
            (int(path.parent.name[5:]) for path in folder.glob(f"{CHECKPOINTS}/step-*/manifest.json")), default=None
        )
        facts = facts_of(folder)
        run.exit = facts.get("exit")
        if run.program == "finetune":
            run.metric = _setting(settings, "task", "metric") or run.metric
        elif planned := _setting(settings, "train", "steps"):
            run.planned = int(planned)
        _read_metrics(run, facts.get("best_step"))
        run.state, run.why = _state(run, facts)
    except (HeadwaterError, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        run.why = str(error)
    return run


def _name(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder != root else folder.resolve().name


def _state(run: Listed, facts: dict[str, Any]) -> tuple[str, str]:
    """Return the state of a run that could be read, and the reason where there is one."""
    if facts or is_locked(run.path):
        return outcome(run.path, run.exit)
    if (run.path / METRICS_FILE).exists() or run.saved is not None:
        return "damaged", f"{RECORD_FILE} is gone"
    begun = (run.path / LOG_FILE).exists()
    return ("failed", f"before its first step; {LOG_FILE} says why") if begun else ("waiting", "for Slurm")


def _read_metrics(run: Listed, best: int | None) -> None:
    """Fill in what the last lines, and that of the best step, say."""
    path = run.path / METRICS_FILE
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{METRICS_FILE} is not a file")
    data = path.read_bytes()
    last = last_record(data, "train") or {}
    held_out = last_record(data, "validation", best) or last_record(data, "validation") or {}
    run.step = max((record["step"] for record in (last, held_out) if record), default=None)
    run.loss = _number(last.get("loss"))
    run.value, run.value_step = _number(held_out.get(run.metric)), held_out.get("step")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | str) else None  # JSON has no NaN: it is a string


def _setting(settings: str, section: str, key: str) -> str | None:
    """Return the text of `section.key` in a config.yaml as runs write it; parsing YAML would take 0.1 s a run."""
    found = re.search(rf"^{section}:\n(?:  .*\n)*?  {key}: (\S+)$", settings, re.MULTILINE)
    return found[1] if found else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):  # a run that goes on deletes old steps
                total += os.lstat(os.path.join(place, file)).st_size  # noqa: PTH118 (a Path costs more than lstat)
    return total


def _changed(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for name in (RECORD_FILE, METRICS_FILE, LOG_FILE):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


# How runs can be sorted; unknown values come last.
ORDERS: dict[str, Callable[[Listed], Any]] = {
    "changed": lambda run: -run.changed,
    "name": lambda run: run.name,
    "state": lambda run: run.state,
    "step": lambda run: -(run.step or 0),
    "loss": lambda run: run.loss if run.loss is not None else float("inf"),
    "size": lambda run: -run.bytes,
}


def table(listed: Sequence[Listed], now: float) -> str:
    """Return the runs as lines of text under a header; `now` is in seconds since 1970."""
    header = ["run", "program", "state", "step", "saved", "loss", "held out", "size", "changed"]
    cells = [header, *(_line(run, now) for run in listed)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    reasons = ["", *(f"  {run.state}: {run.why}" if run.why else "" for run in listed)]
    rows = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join(part for row, reason in zip(rows, reasons, strict=True) for part in (row, reason) if part)


def _line(run: Listed, now: float) -> list[str]:
    step = UNKNOWN if run.step is None else f"{run.step:,}"
    return [
        run.name,
        run.program or UNKNOWN,
        run.state if run.exit in (None, 0) else f"{run.state} ({run.exit})",
        step if run.planned is None else f"{step}/{run.planned:,}",
        UNKNOWN if run.saved is None else f"{run.saved:,}",
        UNKNOWN if run.loss is None else f"{run.loss:.4f}",
        UNKNOWN if run.value is None else f"{run.metric} {run.value:.4f} at {run.value_step:,}",
        _in_units(run.bytes, SIZES, "B"),
        f"{_in_units(max(0.0, now - run.changed), AGES, 's')} ago",
    ]


def _in_units(value: float, units: Sequence[tuple[float, str]], smallest: str) -> str:
    size, unit = next((pair for pair in units if value >= pair[0]), (1, smallest))
    return f"{value / size:.3g} {unit}" if unit[-1] == "B" else f"{value // size:.0f} {unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), _list, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="headwater runs",
        description="The runs below a folder: state, steps, loss, size.",
        example="headwater runs runs --sort loss",
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path("runs"), help="folder of runs (default %(default)s)")
    parser.add_argument("--sort", choices=ORDERS, default="changed", help="by what (default %(default)s, newest first)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _list(options: argparse.Namespace) -> str:
    listed = sorted(runs(options.root), key=ORDERS[options.sort])
    if options.json:
        return "\n".join(to_json({**asdict(run), "path": str(run.path)}) for run in listed)
    return table(listed, time.time()) if listed else f"no runs below {options.root}"


if __name__ == "__main__":
    sys.exit(main())
