"""What a sink is, and the tracker that passes every record to all sinks.

Holds the protocol and the fan-out; each sink has its own file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

logger = logging.getLogger(__name__)

Record = Mapping[str, object]
"""One line of metrics.jsonl: `step`, `split`, and values that are numbers or None (unknown)."""

CHOICES = "choices/"  # before the name of a multiple-choice set; RAW behind it: by likelihoods that are not divided
RAW = "/raw"


class Sample(NamedTuple):
    """A text of `eval.samples`, and how the model continued it at an evaluation."""

    prompt: str
    continuation: str


class Mark(TypedDict):
    """What a checkpoint keeps of the records that were logged before it."""

    lines: int
    sha256: str  # of the lines


class Sink(Protocol):
    """One place that records go to."""

    def log(self, record: Record) -> None:
        """Take one record, without waiting for a slow service."""
        ...

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Take what the model wrote at the evaluation of a step, without waiting. By default this does nothing."""

    def saved(self, step: int, path: Path, best: bool) -> None:
        """Take note of a committed checkpoint, and whether it is the best so far, without waiting either.

        Retention may delete it while the sink still reads it. By default this does nothing.
        """

    def close(self, exit_code: int) -> None:
        """Finish; `exit_code` is the process's own. Nothing is logged afterwards."""
        ...


class Truth(Sink, Protocol):
    """The sink that is read again when a run resumes."""

    def mark(self) -> Mark:
        """Return what tells the records so far from any others."""
        ...


class Tracker(Sink):
    """Passes records on to all sinks: the primary one, whose failures end the run, and mirrors, whose failures do not.

    A mirror that raises is dropped with a warning.
    """

    def __init__(self, truth: Truth, mirrors: Iterable[Sink] = ()) -> None:
        self._truth = truth
        self._mirrors = list(mirrors)

    def log(self, record: Record) -> None:
        """Pass one record to every sink."""
        self._pass_on(lambda sink: sink.log(record))

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Pass samples to every sink."""
        self._pass_on(lambda sink: sink.sampled(step, samples))

    def saved(self, step: int, path: Path, best: bool) -> None:
        """Pass a checkpoint to every sink."""
        self._pass_on(lambda sink: sink.saved(step, path, best))

    def mark(self) -> Mark:
        """Return what a checkpoint keeps of the records so far."""
        return self._truth.mark()

    def close(self, exit_code: int) -> None:
        """Finish every sink."""
        self._pass_on(lambda sink: sink.close(exit_code))

    def _pass_on(self, act: Callable[[Sink], None]) -> None:
        act(self._truth)
        for mirror in tuple(self._mirrors):
            try:
                act(mirror)
            except Exception as error:
                self._mirrors.remove(mirror)
                logger.warning("%s stopped (%s); metrics.jsonl is still written", type(mirror).__name__, error)


def scalars(record: Record) -> dict[str, float]:
    """Return a record's known numbers under the names that dashboards use: `train/loss`, `eval/loss`, ..."""
    prefix = "eval" if record["split"] == "validation" else record["split"]
    return {
        f"{prefix}/{key}": value
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
