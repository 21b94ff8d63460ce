"""metrics.jsonl, the truth about a run: one JSON object a line, appended while the run goes.

Holds writing and truncating, and how numbers that JSON lacks are written; `report` reads it for people.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from pretrain.errors import CheckpointError, ResourceError
from pretrain.files import replace_file
from pretrain.tracking.base import Record, Sink

METRICS_FILE = "metrics.jsonl"


class JsonlSink(Sink):
    """Appends records to a file, one line each as `to_json` writes it, flushed at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append one line. Raises `ResourceError` when it cannot be written."""
        try:
            self._file.write(to_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise ResourceError(f"{self._path}: cannot be written ({error}); free space there and resume") from error

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps and a torn last line, so that a resumed run writes them again.

        The file is replaced as a whole: a kill at any moment leaves the old lines or the new ones. Raises
        `CheckpointError` for a line in the middle that is not a record.
        """
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [
            line for number, line in enumerate(lines, 1) if line.endswith(b"\n") and self._step(line, number) <= step
        ]
        if len(kept) == len(lines):
            return
        self._file.close()
        replace_file(self._path, kept)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self, exit_code: int) -> None:
        """Make the lines durable and close the file."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _step(self, line: bytes, number: int) -> int:
        try:
            return json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self._path}:{number}: {line[:80]!r} is not a record with a step; mend or delete the line and resume"
            ) from None


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
