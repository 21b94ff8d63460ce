"""Labels and numbers, as the cells of a data set give them: what they say, their order, and what they are learnt as.

Holds no reading of files and no names of tokens' labels beyond their order; which problem is posed is the task's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)  # of targets of regression
SHOWN = 10  # labels that are told of those that there are

Answer = str | float | tuple[str, ...]  # a label, a number, or a set of labels, sorted


class BadRecordError(Exception):
    """A record that cannot be used: the reason it is counted under, and what is there."""

    def __init__(self, reason: str, value: object) -> None:
        super().__init__(f"{value!r:.80}")
        self.reason = reason


def label(value: Any) -> str:
    """Return the name of a label: a string as it is, or an integer, which data frames may have stored as a float.

    Raises `BadRecordError` for what is missing (NaN among it) and for what is neither.
    """
    if value is None or value == "" or value != value:
        raise BadRecordError("no label", value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise BadRecordError("label is no name", value)
    return str(value)


def label_set(value: Any, separator: str) -> tuple[str, ...]:
    """Return a set of labels, perhaps empty, sorted: of a list, or of names in a string with `separator` between them.

    Raises `BadRecordError` for anything else, a 0 or 1 for each of three labels or more among it: one occurs twice.
    """
    if isinstance(value, str):
        value = [name.strip() for name in value.split(separator) if name.strip()]
    if not isinstance(value, list):
        raise BadRecordError("no list of labels", value)
    names = sorted(map(label, value))
    if len(set(names)) < len(names):
        raise BadRecordError("a label twice (a list has the names of a record's labels, not a 0 or 1 for each)", value)
    return tuple(names)


def number(value: Any) -> float:
    """Return a target of regression. Raises `BadRecordError` for what is no number, or not finite in float32."""
    if value is None or value == "":
        raise BadRecordError("no number", value)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRecordError("label is no number", value) from None
    if not abs(found) <= LARGEST:
        raise BadRecordError("number is NaN or infinite", value)
    return found


def names_in(answers: Iterable[Answer | None]) -> list[str]:
    """Return the labels in answers, in an order that only they decide: integers by value, others by code points."""
    names: set[str] = set()
    for answer in answers:
        names.update((answer,) if isinstance(answer, str) else answer if isinstance(answer, tuple) else ())
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def listed(names: Sequence[str]) -> str:
    """Return labels as messages tell them: the first `SHOWN`, and how many there are if there are more."""
    more = f", ... ({len(names):,} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def learnt(answer: Answer | None, numbers: Mapping[str, int]) -> int | float | list[int] | None:
    """Return an answer as a loss takes it: the number of its label, a 0 or 1 for each label, or itself.

    Raises `BadRecordError` for a label that has no number.
    """
    for name in names_in([answer]):
        if name not in numbers:
            raise BadRecordError(f"label is none of {listed([*numbers])}", name)
    if isinstance(answer, str):
        return numbers[answer]
    return [int(name in answer) for name in numbers] if isinstance(answer, tuple) else answer
