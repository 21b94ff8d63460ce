"""The batch: ragged sequences that lie end to end in one flat stream.

Holds the types that loaders produce and models consume, not how either works.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.models.base import Stream

IGNORED = -100  # a target with this value is not a target


class Slots(NamedTuple):
    """What the loader cuts from the corpus for one micro-batch: B slots of at most `seq_len` tokens each, end to end.

    A slot holds one or more documents (or parts of them), each a sequence of its own; N tokens, S sequences in all.
    """

    tokens: np.ndarray  # (N,) int64
    following: np.ndarray  # (N,) int64, the id after each token, IGNORED where there is no target
    offsets: np.ndarray  # (S+1,) int32, where sequences begin
    slots: np.ndarray  # (B+1,) int64, where slots begin
    keys: np.ndarray  # (B, 3) int64: source, epoch and index of each slot; random draws depend on nothing else


class TokenizerParts(NamedTuple):
    """What a tokenizer offers to an objective, known before any text is read."""

    prefix: int  # tokens before each document
    suffix: int  # tokens after each document
    mask: bool  # whether it has a token that hides others
    tokens: Collection[str]  # what it is certain to have: of one that is to be trained, its special tokens
    sentinels: int  # tokens that stand for spans


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know about a tokenizer with V ids."""

    special: np.ndarray  # (V,) bool, ids that are not text: [CLS], [MASK], <|endoftext|>
    starts_word: np.ndarray  # (V,) bool, ids that start a word, whatever comes before
    ends_word: np.ndarray  # (V,) bool, ids that end a word, whatever follows
    mask: int | None  # the id that replaces a hidden token; None if there is none
    prefix: list[int]  # ids before each document
    suffix: list[int]  # ids after each document
    ids: Mapping[str, int] = field(default_factory=dict)  # of all tokens
    sentinels: list[int] = field(default_factory=list)  # ids of the tokens that stand for spans, in their order
    ends_sentence: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))  # (V,), ids that end a sentence
    start: int | None = None  # the id that a decoder sees first, whose target is the first token; None: there is none

    @property
    def parts(self) -> TokenizerParts:
        """What decides whether an objective can work with it."""
        hides = self.mask is not None
        return TokenizerParts(len(self.prefix), len(self.suffix), hides, self.ids, len(self.sentinels))


class Ragged(NamedTuple):
    """Sequences of tokens that lie end to end."""

    tokens: np.ndarray  # (N,) int64
    offsets: np.ndarray  # (S+1,) int32, where sequences begin


class Inputs(NamedTuple):
    """What a batch is made from: N tokens in S sequences. Objectives make them from slots, and may change sequences."""

    tokens: np.ndarray  # (N,) int64, what the model sees
    targets: np.ndarray  # (N,) int64, IGNORED where nothing is predicted
    offsets: np.ndarray  # (S+1,) int32, where sequences begin
    segments: np.ndarray | None = None  # (N,) int64 token-type ids
    labels: np.ndarray | None = None  # (S, ...) of sequences: int64, IGNORED = none; or float32, nan = none
    source: Ragged | None = None  # what an encoder sees: S sequences, none of them empty, in the order of the others


Examples = Callable[[Slots], Inputs]
"""A pure function of the slots and their keys: what `ObjectiveConfig.examples` returns."""


@dataclass
class Batch:
    """One micro-batch of S sequences, N tokens in all; nothing is padded.

    N is the number of tokens, S the number of sequences (documents, or parts of them).
    """

    tokens: Tensor  # (N,) int64, all sequences end to end
    positions: Tensor  # (N,) int64, position inside its sequence
    offsets: Tensor  # (S+1,) int32, sequence s is tokens[offsets[s]:offsets[s+1]]
    max_len: int  # longest sequence in tokens, an upper bound is allowed
    targets: Tensor  # (N,) int64 token targets; IGNORED = not a target
    num_targets: int  # targets that count, known on the CPU before the forward pass
    lengths: list[int] | None = None  # (S,) tokens of each sequence, known on the CPU; see `Layout`
    segments: Tensor | None = None  # (N,) int64 token-type ids
    labels: Tensor | None = None  # (S, ...) of sequences: int64, IGNORED = none; or numbers, nan = none
    source: Stream | None = None  # what an encoder sees: sequence s of it belongs to sequence s of the tokens
    filler: bool = False  # whether it holds no text, only a place in a collective

    @classmethod
    def of(cls, inputs: Inputs, *, num_targets: int | None = None, filler: bool = False) -> Batch:
        """Return the batch of flat arrays; `num_targets` is the number of token targets unless it is given."""
        tokens, targets, offsets, segments, labels, source = inputs
        return cls(
            **vars(_stream(tokens, offsets)),
            targets=torch.from_numpy(targets),
            num_targets=int(np.count_nonzero(targets != IGNORED)) if num_targets is None else num_targets,
            segments=None if segments is None else torch.from_numpy(segments),
            labels=None if labels is None else torch.from_numpy(labels),
            source=None if source is None else _stream(*source),
            filler=filler,
        )

    @classmethod
    def empty(cls, *, source: bool = False) -> Batch:
        """Return a batch of one token without a target, for a rank that has no examples left; perhaps with a source."""
        one = Ragged(np.array([0]), np.array([0, 1], dtype=np.int32))
        inputs = Inputs(one.tokens, np.array([IGNORED]), one.offsets, source=one if source else None)
        return cls.of(inputs, filler=True)

    @property
    def num_tokens(self) -> int:
        """Tokens of text, those of the source among them."""
        both = len(self.tokens) + (0 if self.source is None else len(self.source.tokens))
        return 0 if self.filler else both

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, so that `to` can copy while the device computes."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        source = None if self.source is None else replace(self.source, **_changed(self.source, change))
        return replace(self, **_changed(self, change), source=source)


def _stream(tokens: np.ndarray, offsets: np.ndarray) -> Stream:
    lengths = np.diff(offsets)
    positions = np.arange(len(tokens)) - offsets[:-1].astype(np.int64).repeat(lengths)
    arrays = (torch.from_numpy(array) for array in (tokens, positions, offsets))
    return Stream(*arrays, max_len=int(lengths.max()), lengths=lengths.tolist())


def _changed(holder: Batch | Stream, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(value) for name, value in vars(holder).items() if isinstance(value, Tensor)}
