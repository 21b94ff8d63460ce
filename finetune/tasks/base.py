"""What a task is to the rest of fine-tuning.

Holds the protocol; each task has its own file. Nothing here reads files or builds networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from tokenizers import Tokenizer

from finetune.data.examples import Examples
from finetune.model.losses import TaskLoss
from finetune.report.page import Section
from pretrain.hub.family import HeadKind


@dataclass(frozen=True)
class Encoded:
    """A data set as a task encoded it: E sequences of R records (a long text may be several)."""

    examples: Examples
    records: Sequence[Any]  # the task's own: texts, answers, where they came from
    owner: np.ndarray  # (E,) int64, the record of each sequence, in ascending order; a record may have none


class TaskConfig(Protocol):
    """What `run` asks of a task's dataclass, a choice of the group `task`."""

    kind: ClassVar[HeadKind]  # what its head answers for
    fixed: ClassVar[tuple[str, ...]]  # settings that only learning reads or that weights are for: no use changes them
    train: str  # file, or name on the hub, of the examples to learn from
    validation: str  # of those that measure it
    max_tokens: int  # of a sequence; what is longer is cut or split, as the task says

    @property
    def metric(self) -> str:
        """The name of the metric that chooses the best step; more is better."""
        ...

    @property
    def found(self) -> tuple[str, ...]:
        """The settings that are left to measuring, which finds them as metrics of the same names."""
        ...

    def records(self, source: str, *, labelled: bool = True) -> list[Any]:
        """Read a data set, with its answers or without.

        Raises `ConfigError` for a file or column that is not there, `DataError` for bad records beyond the share that
        is allowed.
        """
        ...

    def names(self, records: Sequence[Any]) -> list[str]:
        """Return the names of the head's outputs, from the training set, in an order that only its content decides."""
        ...

    def encode(self, records: Sequence[Any], tokenizer: Tokenizer, names: list[str]) -> Encoded:
        """Encode records with a tokenizer that frames texts. Raises `DataError` for answers that have no name."""
        ...

    def loss(self, encoded: Encoded, names: list[str]) -> TaskLoss:
        """Return what training minimises; `encoded` is the training set, for weights of classes."""
        ...

    def measure(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> dict[str, float]:
        """Return the metrics of a data set from the logits of each of its sequences: (C,), or (tokens, C)."""
        ...

    def predict(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield what is predicted for each record, plain values with scores, in order.

        What a line is of is its `place`, as faults tell it, or an `id` that records have.
        """
        ...

    def sections(
        self, encoded: Encoded, logits: list[np.ndarray], names: list[str], measured: Mapping[str, float]
    ) -> list[Section]:
        """Return what a report page says of the answers to a data set that has answers; `measure` gave `measured`."""
        ...
