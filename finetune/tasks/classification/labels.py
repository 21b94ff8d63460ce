"""Labels and numbers: from the cells of a data set to the targets of a loss, with their names and their order.

Files are read by `finetune.data`; which of the three problems is posed is the task's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from finetune.tasks.base import shortlist
from pretrain.data.sources.bad_records import BadRecordError

LARGEST = float(np.finfo(np.float32).max)  # magnitude of a target of regression

Label = str | float | tuple[str, ...]  # a label, a number, or a set of labels, sorted


class LabelledText(NamedTuple):
    """A text, or a pair of texts."""

    text: str
    pair: str | None
    label: Label | None  # None: not known
    place: str  # file and line


def label_name(value: Any) -> str:
    """Return the name of a label: a string as it is, or an integer, which data frames may have stored as a float.

    Raises `BadRecordError` for a missing value (NaN included) and for anything else.
    """
    if value is None or value == "" or value != value:
        raise BadRecordError("no label", f"{value!r:.80}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise BadRecordError("label is no name", f"{value!r:.80}")
    return str(value)


def label_set(value: Any, separator: str) -> tuple[str, ...]:
    """Return a sorted set of labels, perhaps empty, from a list or from names with `separator` between them.

    Raises `BadRecordError` for anything else and for a label that occurs twice, as it does in a list of zeros and ones.
    """
    if isinstance(value, str):
        value = [name.strip() for name in value.split(separator) if name.strip()]
    if not isinstance(value, list):
        raise BadRecordError("no list of labels", f"{value!r:.80}")
    names = sorted(map(label_name, value))
    if len(set(names)) < len(names):
        reason = "a label twice (a list has the names of a record's labels, not a 0 or 1 for each)"
        raise BadRecordError(reason, f"{value!r:.80}")
    return tuple(names)


def regression_target(value: Any) -> float:
    """Return a target of regression. Raises `BadRecordError` for what is no number, or not finite in float32."""
    if value is None or value == "":
        raise BadRecordError("no number", f"{value!r:.80}")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRecordError("label is no number", f"{value!r:.80}") from None
    if not abs(found) <= LARGEST:
        raise BadRecordError("number is NaN or infinite", f"{value!r:.80}")
    return found


def label_names(labels: Iterable[Label | None]) -> list[str]:
    """Return all names in labels and sets of them, in an order of their own: integers by value, others by code point.

    Numbers have no names.
    """
    names: set[str] = set()
    for label in labels:
        names.update((label,) if isinstance(label, str) else label if isinstance(label, tuple) else ())
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def as_target(label: Label | None, indices: Mapping[str, int]) -> int | float | list[int] | None:
    """Return a label as a loss takes it: its index, a 0 or 1 for each label of a set, or the number itself.

    Raises `BadRecordError` for a label that has no index.
    """
    for name in label_names([label]):
        if name not in indices:
            raise BadRecordError(f"label is none of {shortlist([*indices])}", f"{name!r:.80}")
    if isinstance(label, str):
        return indices[label]
    return [int(name in label) for name in indices] if isinstance(label, tuple) else label
