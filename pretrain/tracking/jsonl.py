"""metrics.jsonl, the truth about a run, and samples.jsonl: one JSON object a line, appended while the run goes.

Holds writing and truncating, what is missing when a run resumes, and how numbers that JSON lacks are written; `report`
reads it for people.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.errors.unwritable import writes_named
from pretrain.files import parsed, replace_file
from pretrain.tracking.base import Mark, Record, Sample, Sink

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
SKIPS_FILE = "skips.jsonl"  # optimizer steps whose update was skipped


class JsonlSink(Sink):
    """Appends records to a file, one line each as `to_json` writes it, flushed at once.

    Raises `ResourceError` wherever the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._opened()
        self._lines, self._digest = _counted([])

    def log(self, record: Record) -> None:
        """Append one line."""
        line = f"{to_json(record)}\n".encode()
        self._lines += 1
        self._digest.update(line)
        with writes_named(self._path):
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps and a torn last line, so that a resumed run writes them again.

        The file is replaced as a whole: a kill at any moment leaves the old lines or the new ones. Raises
        `CheckpointError` for a line in the middle that is not a record.
        """
        kept, dropped = _split(self._path, step)
        self._lines, self._digest = _counted(kept)
        if not dropped:
            return
        self._file.close()
        with writes_named(self._path):
            replace_file(self._path, kept)
        self._file = self._opened()

    def mark(self) -> Mark:
        """Return what tells the lines so far from any others; `truncate_after` has seen those of earlier starts."""
        return Mark(lines=self._lines, sha256=self._digest.hexdigest())

    def close(self, exit_code: int) -> None:
        """Make the lines durable and close the file."""
        with writes_named(self._path), self._file:
            os.fsync(self._file.fileno())

    def _opened(self) -> FileIO:
        with writes_named(self._path):
            return self._path.open("ab", buffering=0)  # what could not be written must not come back when it is closed


class SamplesSink(Sink):
    """Appends samples to a file that comes with the first of them: lines with `step`, `prompt` and `continuation`."""

    def __init__(self, path: Path, start_step: int) -> None:
        """Drop the lines of steps after `start_step`, as `JsonlSink.truncate_after` does."""
        self._path = path
        self._lines = JsonlSink(path) if path.exists() else None
        if self._lines:
            self._lines.truncate_after(start_step)

    def log(self, record: Record) -> None:
        """Leave records to metrics.jsonl."""

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Append one line for each sample. Raises `ResourceError` when it cannot be written."""
        self._lines = self._lines or JsonlSink(self._path)
        for sample in samples:
            self._lines.log({"step": step, **sample._asdict()})

    def close(self, exit_code: int) -> None:
        """Make the lines durable and close the file."""
        if self._lines:
            self._lines.close(exit_code)


def last_record(data: bytes, split: str, step: int | None = None) -> dict[str, Any] | None:
    """Return the last whole record of a split in a metrics.jsonl, of a step if one is named; None without one.

    No other line is parsed. Raises `ValueError` if it is no record.
    """
    marker = f'"split": "{split}"' if step is None else f'{{"step": {step}, "split": "{split}"'
    at = data.rfind(marker.encode(), 0, data.rfind(b"\n") + 1)
    if at < 0:
        return None
    line = data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)]
    try:
        record = parsed(line)
        if type(record["step"]) is not int:
            raise ValueError("a step that is no number")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{METRICS_FILE}: {line[:40]!r} is no record ({error})") from None
    return record


def missing(path: Path, step: int, mark: Mark | None) -> str | None:
    """Say what a metrics.jsonl lacks of what a run had logged when it saved `step`, None if nothing.

    `mark` is that of the checkpoint; None in those of older versions, with which only a file without lines is missed.
    Raises `CheckpointError` for a line in the middle that is not a record.
    """
    kept = _split(path, step)[0] if path.exists() else []
    lines, digest = _counted(kept)
    if mark is None:
        mark = Mark(lines=lines or 1, sha256=digest.hexdigest())
    if (lines, digest.hexdigest()) == (mark["lines"], mark["sha256"]):
        return None
    what = "with other values in them" if lines == mark["lines"] else f"of {mark['lines']}"
    last = f", the last of step {_step(path, kept[-1], lines)}" if kept else ""
    return f"{path}: the run had logged other lines up to step {step} than there are: {lines} {what}{last}"


def _split(path: Path, step: int) -> tuple[list[bytes], list[bytes]]:
    """Return the whole lines up to a step, and all others."""
    kept, dropped = [], []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        (kept if line.endswith(b"\n") and _step(path, line, number) <= step else dropped).append(line)
    return kept, dropped


def _step(path: Path, line: bytes, number: int) -> int:
    try:
        step = parsed(line)["step"]
        if type(step) is int:
            return step
    except (ValueError, KeyError):
        pass
    raise CheckpointError(
        f"{path}:{number}: {line[:80]!r} is not a record with a step; mend or delete the line and resume"
    )


def _counted(lines: list[bytes]) -> tuple[int, hashlib._Hash]:
    return len(lines), hashlib.sha256(b"".join(lines))


def to_json(value: object, *, ensure_ascii: bool = True) -> str:
    """Return plain values as JSON on one line.

    NaN and infinities, however deep, are written as the strings "NaN", "Infinity" and "-Infinity" (the spelling of
    protobuf's JSON): plain JSON has no such numbers, and null means unknown.
    """
    return json.dumps(_finite(value), ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
