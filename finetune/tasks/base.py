"""What a task is to the rest of fine-tuning: the protocol, and the small things that all tasks share.

Nothing here reads files or builds networks; each task has a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from tokenizers import Encoding, Tokenizer

from finetune.answering.base import Answering, Encoded
from finetune.data.records import DataSet
from pretrain.errors import DataError
from pretrain.report.page import Section

BATCH = 1024  # texts that are tokenized at a time, so that the library's large results do not pile up
MAX_NAMES = 10  # names of outputs that a message lists
LOWER_IS_BETTER = {"loss", "perplexity"}  # metrics of which the lowest value is the best


def shortlist(names: Sequence[str]) -> str:
    """Return the names of outputs for a message: the first `MAX_NAMES`, then how many there are if there are more."""
    more = f", ... ({len(names):,} in all)" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of outputs in an order of their own: integers by value, others by code point."""
    names = list(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def name_of_number(number: int, labels: Sequence[str]) -> str:
    """Return the name of a class that a data set has as an integer: the one of `labels` with this index, or itself.

    Itself, too, if one of the labels is an integer or there is none of this index.
    """
    indexed = 0 <= number < len(labels) and not any(re.fullmatch(r"-?[0-9]+", label) for label in labels)
    return labels[number] if indexed else str(number)


def check_classes(place: str, classes: Sequence[str], names: Sequence[str], train: str) -> None:
    """Raise `DataError` if a data set itself names `classes` that are not among the outputs, which `train` named."""
    if set(classes) - set(names):
        ours = f"but those of task.train={train} are {shortlist(names)}"
        raise DataError(f"{place}: the names of its classes are {shortlist(classes)}, {ours}; name both alike")


def encodings(tokenizer: Tokenizer, texts: Sequence[Any], *, special_tokens: bool = True) -> Iterator[Encoding]:
    """Yield the encoding of each text, or pair of texts, in order."""
    for start in range(0, len(texts), BATCH):
        # Not `encode_batch_fast`: without a template it gives both texts of a pair the same token type.
        yield from tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=special_tokens)


class TaskConfig(Protocol):
    """What the rest of fine-tuning needs of a task's dataclass, a choice of the group `task`."""

    fixed: ClassVar[tuple[str, ...]]  # settings that a trained run keeps: prediction and evaluation cannot change them
    train: str  # file, or name on the hub, of the training set
    validation: str  # the same of the validation set

    @property
    def answering(self) -> Answering:
        """How its model answers: `ByHead` or `ByWriting` of this task."""
        ...

    @property
    def variety(self) -> str:
        """Which of its problems or schemes a task solves, for reports; empty for a task that has one alone."""
        ...

    @property
    def metric(self) -> str:
        """The name of the metric that chooses the best step; more is better, unless it is one of LOWER_IS_BETTER."""
        ...

    @property
    def tuned_settings(self) -> tuple[str, ...]:
        """The settings that are chosen on the validation set, where `measure` returns them under the same names."""
        ...

    def records(self, source: DataSet, *, labelled: bool = True) -> list[Any]:
        """Read a data set, with its answers or without, or take one that is in memory.

        Raises `ConfigError` for a file or column that is not there, `DataError` for more bad records than are allowed.
        """
        ...

    def names(self, records: Sequence[Any]) -> list[str]:
        """Return the names of the head's outputs, from the training set, in an order that only its content decides."""
        ...

    def measure(self, encoded: Encoded, answers: list[Any], names: list[str]) -> dict[str, float]:
        """Return the metrics of a data set from the answer to each of its sequences: logits, or a text.

        A name here is all that a metric needs to be logged and shown; `EVALUATION` in `pretrain.tracking.console` may
        give it a label and a format.
        """
        ...

    def predict(self, encoded: Encoded, answers: list[Any], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the prediction for each record in order: plain values with scores.

        Each says which record it is for: by its `place` (file and line), or by the `id` that records have.
        """
        ...

    def sections(
        self, encoded: Encoded, answers: list[Any], names: list[str], measured: Mapping[str, float]
    ) -> list[Section]:
        """Return the task's own sections of a report on a data set that has answers, whose metrics are `measured`."""
        ...
