"""Bad records: counted by reason, with examples, and refused where they are too many.

Holds the counting; what is bad is for readers and tasks to say.
"""

from __future__ import annotations

import logging
from collections import defaultdict

from pretrain.errors import DataError

SHOWN = 3  # examples of each reason that are told

log = logging.getLogger(__name__)


class Faults:
    """What is wrong with the records of one data set."""

    def __init__(self, source: str, *, allowed: float) -> None:
        """Count faults in `source`; a share of its records up to `allowed` may have one and is left out."""
        self._source = source
        self._allowed = allowed
        self._found: dict[str, list[str]] = defaultdict(list)

    def report(self, reason: str, place: str, detail: str) -> None:
        """Count a record that is left out: the reason in a few words, its file and line, and what is there."""
        self._found[reason].append(f"{place}: {detail}")

    @property
    def counts(self) -> dict[str, int]:
        """How many records have each fault."""
        return {reason: len(examples) for reason, examples in sorted(self._found.items())}

    def settle(self, num_records: int) -> None:
        """Tell what was left out of so many records. Raises `DataError` if it is more than allowed, or all of them."""
        if not num_records:
            raise DataError(f"{self._source}: there is no record in it; name one that has some")
        bad = sum(self.counts.values())
        if not bad:
            return
        told = "; ".join(
            f"{reason}: {len(examples)} ({', '.join(examples[:SHOWN])})"
            for reason, examples in sorted(self._found.items())
        )
        share = f"{bad} of {num_records} records are bad"
        if bad > self._allowed * num_records or bad == num_records:
            rule = f"more than task.max_faults={self._allowed} of them; mend them, or raise it to leave them out"
            raise DataError(f"{self._source}: {share}, {rule}. {told}")
        log.warning("%s: %s and left out. %s", self._source, share, told)
