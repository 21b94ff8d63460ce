"""Bad records: counted by reason, with a few examples, and refused where there are too many.

Holds the counting, which pretraining and fine-tuning share; readers, sources and tasks decide what is bad. Free of
torch.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from pretrain.errors import DataError

SHOWN = 3  # examples of each reason in a message

log = logging.getLogger(__name__)


class OnInvalid(Enum):
    """What happens to text that is not valid: invalid UTF-8, NUL bytes, bad records."""

    replace = "replace"  # mend it with U+FFFD; records that cannot be mended are left out
    skip = "skip"  # leave the document out
    fail = "fail"  # stop with an error that names file and offset


class BadRecordError(Exception):
    """One bad record: the reason it is counted under, what was found, and where if not at its first line."""

    def __init__(self, reason: str, detail: str, place: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.place = place


class BadRecords:
    """The records of one data set that were left out or mended.

    Preparing a corpus sets `policy`: under `fail` the first bad record is an error. Fine-tuning sets `allowed` and
    calls `settle` when everything is read: a larger share of bad records is an error.
    """

    def __init__(self, source: str = "", *, allowed: float = 1.0, policy: OnInvalid = OnInvalid.skip) -> None:
        """Start counting for a data set called `source`."""
        self.policy = policy
        self.counts: Counter[str] = Counter()  # reason -> records, lines or files
        self._source = source
        self._allowed = allowed  # share of the records
        self._examples: dict[str, list[str]] = defaultdict(list)  # reason -> the first SHOWN of them

    def report(self, reason: str, place: str, detail: str) -> None:
        """Count a bad record at `place` (file and line). Raises `DataError` under the policy `fail`."""
        if self.policy is OnInvalid.fail:
            raise DataError(
                f"{place}: {detail}; mend the file, or choose data.prepare.on_invalid=replace (mends what can be "
                "mended) or =skip (leaves the document out)"
            )
        self.counts[reason] += 1
        if len(examples := self._examples[reason]) < SHOWN:
            examples.append(f"{place}: {detail}")

    @contextmanager
    def counted(self, place: str) -> Iterator[None]:
        """Report a `BadRecordError` that is raised in the block, about the record at `place`, and continue after it."""
        try:
            yield
        except BadRecordError as bad:
            self.report(bad.reason, bad.place or place, str(bad))

    def settle(self, num_good: int) -> None:
        """Log what was left out beside `num_good` records. Raises `DataError` if it is more than allowed, or all."""
        bad = self.counts.total()
        num_records = num_good + bad
        if not num_records:
            raise DataError(f"{self._source}: there is no record in it; name one that has some")
        if not bad:
            return
        reasons = "; ".join(
            f"{reason}: {count} ({', '.join(self._examples[reason])})" for reason, count in sorted(self.counts.items())
        )
        share = f"{bad} of {num_records} records are bad"
        if bad > self._allowed * num_records or bad == num_records:
            rule = f"more than task.max_faults={self._allowed} of them; mend them, or raise it to leave them out"
            raise DataError(f"{self._source}: {share}, {rule}. {reasons}")
        log.warning("%s: %s and left out. %s", self._source, share, reasons)
