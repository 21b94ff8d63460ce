"""The heads of families' classes for tasks: what stands before the classifier, and how transformers names it.

Holds descriptions; fine-tuning builds heads of them, and each family says which are its.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class HeadKind(StrEnum):
    """What a task's head makes predictions for."""

    sequence = "sequence"  # each sequence, from the hidden state of one token
    span = "span"  # each token: whether an answer begins there, and whether one ends there
    token = "token"  # each token

    @property
    def ending(self) -> str:
        """What names of its classes in transformers end with."""
        return f"For{_CLASSES[self]}"


_CLASSES = {
    HeadKind.sequence: "SequenceClassification",
    HeadKind.span: "QuestionAnswering",
    HeadKind.token: "TokenClassification",
}


class Pooling(StrEnum):
    """Which hidden state represents a sequence."""

    first = "first"  # that of its first token
    last = "last"  # that of its last token


class HeadLayer(StrEnum):
    """A layer before a head's classifier."""

    pooler = "pooler"  # BERT's, which pretraining may have trained
    tanh = "tanh"  # a projection as wide as the model, and its tanh
    relu = "relu"  # the same with relu
    gelu = "gelu"  # the same with gelu
    transform = "transform"  # the layers before the vocabulary projection, trained with it
    dropout = "dropout"


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """The head of one of a family's classes for tasks, as fine-tuning builds it and as `transformers` names it."""

    names: dict[str, str] = field(default_factory=lambda: {"classifier": "classifier"})  # below our head, and theirs
    layers: tuple[HeadLayer, ...] = ()  # before the classifier
    bias: bool = True  # whether the classifier has one
    pooling: Pooling = Pooling.first  # of sequences
    prefix: str | None = None  # begins the names of the body; None: as in the family's own checkpoints
    computes: dict[str, Any] = field(default_factory=dict)  # settings of theirs with the values that it has


SPANS = TaskHead(names={"classifier": "qa_outputs"})
TOKENS = TaskHead(layers=(HeadLayer.dropout,))
LAST_TOKEN = TaskHead(names={"classifier": "score"}, bias=False, pooling=Pooling.last)  # it has seen the whole text


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of a family's classes for tasks, one a `HeadKind`; the defaults are those of most families.

    None: `transformers` has no such class.
    """

    sequence: TaskHead | None
    span: TaskHead | None = SPANS
    token: TaskHead | None = TOKENS

    def of(self, kind: HeadKind) -> TaskHead | None:
        """Return the head of a kind, None where there is none."""
        return getattr(self, kind)


NO_HEADS = Heads(sequence=None, span=None, token=None)
