"""Encoded examples: the token sequences that a task makes of texts, ragged, in memory; with sources, pairs of them.

Holds the type and how a batch is cut from it; which examples are in a batch is decided in `batches`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pretrain.data.batch import IGNORED, Batch, Inputs, Ragged
from pretrain.data.corpus import concatenated_ranges
from pretrain.data.lengths import Share, shares_of


class Example(NamedTuple):
    """One sequence of tokens with its labels."""

    tokens: list[int]
    segments: list[int]  # token-type ids, as long
    label: int | float | list[int] | list[float] | None = None  # of the sequence
    targets: list[int] | None = None  # of its tokens, as long; IGNORED = none
    source: list[int] | None = None  # what an encoder sees of it; not empty


@dataclass(frozen=True)
class Examples:
    """E examples, N tokens in all, end to end."""

    tokens: np.ndarray  # (N,) int32
    segments: np.ndarray  # (N,) uint8, token-type ids
    offsets: np.ndarray  # (E+1,) int64, example e is tokens[offsets[e]:offsets[e+1]]
    labels: np.ndarray | None  # (E, ...) of sequences, int64 or float32
    targets: np.ndarray | None  # (N,) int64 of tokens, IGNORED = none
    source: Ragged | None = None  # what an encoder sees of each, E sequences, int32

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """Join examples, all of which have labels, or none; the same goes for targets and sources."""
        rows = list(examples)
        lengths = [len(row.tokens) for row in rows]
        labelled = bool(rows) and rows[0].label is not None
        tagged = bool(rows) and rows[0].targets is not None
        return cls(
            tokens=_joined([row.tokens for row in rows], sum(lengths), np.int32),
            segments=_joined([row.segments for row in rows], sum(lengths), np.uint8),
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            labels=_labels([row.label for row in rows]) if labelled else None,
            targets=_joined([row.targets or [] for row in rows], sum(lengths), np.int64) if tagged else None,
            source=_ragged([row.source or [] for row in rows]) if rows and rows[0].source is not None else None,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, those of its source among them, (E,) int64."""
        own = np.diff(self.offsets)
        return own if self.source is None else own + np.diff(self.source.offsets)

    @property
    def shares(self) -> list[Share]:
        """Lengths of the examples that tokens lie in: what attention costs."""
        return shares_of(self.lengths)

    @property
    def sha256(self) -> str:
        """Hash of everything that training sees."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.segments, self.offsets, self.labels, self.targets, *(self.source or ())):
            digest.update(b"" if array is None else array.tobytes())
        return digest.hexdigest()

    def part(self, chosen: np.ndarray) -> Examples:
        """Return the chosen examples (S,) int64, in that order."""
        offsets, places = _places(self.offsets, chosen)
        return Examples(
            tokens=self.tokens[places],
            segments=self.segments[places],
            offsets=offsets,
            labels=None if self.labels is None else self.labels[chosen],
            targets=None if self.targets is None else self.targets[places],
            source=None if self.source is None else _part(self.source, chosen),
        )

    def batch(self, chosen: np.ndarray) -> Batch:
        """Return the micro-batch of the chosen examples (S,) int64, in that order; of none one without text."""
        if not len(chosen):
            return Batch.empty(source=self.source is not None)
        part = self.part(chosen)
        source = part.source
        inputs = Inputs(
            tokens=part.tokens.astype(np.int64),
            targets=np.full(len(part.tokens), IGNORED) if part.targets is None else part.targets,
            offsets=part.offsets.astype(np.int32),
            segments=part.segments.astype(np.int64),
            labels=part.labels,
            source=source and Ragged(source.tokens.astype(np.int64), source.offsets.astype(np.int32)),
        )
        return Batch.of(inputs, num_targets=None if self.labels is None else len(chosen))


def _places(offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of chosen sequences end to end, and where their tokens lie among those of all."""
    lengths = np.diff(offsets)[chosen]
    return np.concatenate([[0], lengths.cumsum()]), concatenated_ranges(offsets[chosen], lengths)


def _part(source: Ragged, chosen: np.ndarray) -> Ragged:
    offsets, places = _places(source.offsets, chosen)
    return Ragged(source.tokens[places], offsets)


def _ragged(rows: list[list[int]]) -> Ragged:
    lengths = [len(row) for row in rows]
    assert all(lengths), "an encoder sees something of each example"
    return Ragged(_joined(rows, sum(lengths), np.int32), np.cumsum([0, *lengths], dtype=np.int64))


def _joined(rows: list[list[int]], total: int, dtype: type) -> np.ndarray:
    return np.fromiter((value for row in rows for value in row), dtype=dtype, count=total)


def _labels(labels: list) -> np.ndarray:
    array = np.array(labels)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
