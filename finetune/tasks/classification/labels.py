"""Labels and numbers: from the cells of a data set to the targets of a loss, with their names and their order.

Files are read by `finetune.data`; which of the three problems is posed is the task's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from finetune.tasks.base import in_order, name_of_number, shortlist
from pretrain.data.sources.bad_records import BadRecordError

PRINTED_LIST = re.compile(r"\[\s*(['\"0-9].*)?\]", re.DOTALL)  # as Python prints one
LARGEST = float(np.finfo(np.float32).max)  # magnitude of a target of regression

Label = str | float | tuple[str, ...]  # a label, a number, or a set of labels, sorted


class LabelledText(NamedTuple):
    """A text, or a pair of texts."""

    text: str
    pair: str | None
    label: Label | None  # None: not known
    place: str  # file and line
    classes: tuple[str, ...] = ()  # names of all classes in their order, if the data set has them


def label_name(value: Any, labels: Sequence[str] = ()) -> str:
    """Return the name of a label: a string as it is, or of an integer, which data frames may have stored as a float.

    An integer is an index into `labels`, if none of these is one. Raises `BadRecordError` for a missing value (NaN
    included) and for anything else.
    """
    if value is None or value == "" or value != value:
        raise BadRecordError("no label", f"{value!r:.80}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise BadRecordError("label is no name", f"{value!r:.80}")
    return name_of_number(value, labels) if type(value) is int else str(value)


def label_set(value: Any, separator: str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a sorted set of labels, perhaps empty, from a list or from names with `separator` between them.

    Integers are as in `label_name`. Raises `BadRecordError` for anything else and for a label that occurs twice, as it
    does in a list of zeros and ones.
    """
    if isinstance(value, str) and PRINTED_LIST.fullmatch(value.strip()):
        raise BadRecordError("a printed list", f"{value!r:.80}; write the names with the separator between them")
    if isinstance(value, str):
        value = [name.strip() for name in value.split(separator) if name.strip()]
    if not isinstance(value, list):
        raise BadRecordError("no list of labels", f"{value!r:.80}")
    names = sorted(label_name(name, labels) for name in value)
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
    """Return all names in labels and sets of them, in an order of their own. Numbers have no names."""
    names: set[str] = set()
    for label in labels:
        names.update((label,) if isinstance(label, str) else label if isinstance(label, tuple) else ())
    return in_order(names)


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
