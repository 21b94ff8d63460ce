"""The batch: ragged sequences that lie end to end in one flat stream.

Holds the type that loaders produce and models consume, not how either works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a target with this value is not a target


class Slots(NamedTuple):
    """What the loader cuts from the corpus for one micro-batch: B slots of at most `seq_len` tokens each, end to end.

    A slot holds one or more documents (or parts of them), each a sequence of its own; N tokens, S sequences in all.
    """

    tokens: np.ndarray  # (N,) int64
    following: np.ndarray  # (N,) int64, the id after each token, IGNORED where nothing may be learnt
    offsets: np.ndarray  # (S+1,) int32, where sequences begin
    slots: np.ndarray  # (B+1,) int64, where slots begin
    keys: np.ndarray  # (B, 3) int64: source, epoch and index of each slot, what randomness is drawn from


@dataclass(frozen=True)
class Vocabulary:
    """What an objective needs to know of a tokenizer of V ids."""

    special: np.ndarray  # (V,) bool, ids that stand for no text: [CLS], [MASK], <|endoftext|>
    starts_word: np.ndarray  # (V,) bool, ids that begin a word, whatever is before them
    ends_word: np.ndarray  # (V,) bool, ids after which a word begins, whatever follows
    mask: int | None  # the id that hides a token; None: this tokenizer has none
    prefix: list[int]  # ids before each document
    suffix: list[int]  # ids after each document


class Inputs(NamedTuple):
    """What an objective makes of slots: N tokens in S sequences, perhaps other ones than the slots have."""

    tokens: np.ndarray  # (N,) int64, what the model sees
    targets: np.ndarray  # (N,) int64, IGNORED where nothing is predicted
    offsets: np.ndarray  # (S+1,) int32, where sequences begin
    segments: np.ndarray | None = None  # (N,) int64 token-type ids
    labels: np.ndarray | None = None  # (S,) int64, one a sequence, IGNORED = none


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
    filler: bool = False  # whether it stands for no text

    @classmethod
    def empty(cls) -> Batch:
        """Return a batch of one sequence of one token that counts nothing: of a rank that has nothing left."""
        return cls(
            tokens=torch.zeros(1, dtype=torch.int64),
            positions=torch.zeros(1, dtype=torch.int64),
            offsets=torch.tensor([0, 1], dtype=torch.int32),
            max_len=1,
            targets=torch.full((1,), IGNORED, dtype=torch.int64),
            num_targets=0,
            lengths=[1],
            filler=True,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of text."""
        return 0 if self.filler else len(self.tokens)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; copies from pinned memory do not wait."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, so that `to` can copy while the device computes."""
        pinned = {
            field.name: value.pin_memory()
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **pinned)
