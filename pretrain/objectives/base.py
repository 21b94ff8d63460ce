"""What an objective is: a module around a model that turns a batch into a loss.

Holds the bases only; each objective has its own file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn

from pretrain.data.batch import IGNORED, Batch, Examples, Inputs, Ragged, TokenizerParts, Vocabulary
from pretrain.errors import check
from pretrain.models.base import Model, ModelKind
from pretrain.models.init import Initial
from pretrain.objectives.cross_entropy import ChunkLoss, chunk_loss


class Loss(NamedTuple):
    """Sums over the targets of one micro-batch; the loop divides them by the targets of the global batch."""

    total: Tensor  # () fp32, what is minimised, summed over targets; carries the graph
    nll: Tensor  # () fp32, negative log-likelihood in nats alone, summed over targets, detached
    correct: Tensor  # () targets whose own logit is the largest, detached
    labels: Tensor | None = None  # (3,) the same of labels of sequences, detached: nll, how many are right, how many
    replaced: Tensor | None = None  # (2,) of replaced tokens, detached: how many were told, how many there are
    logits: Tensor | None = None  # (S, C) or (N, C) fp32, detached: of a task's head, for its predictions


class Objective(nn.Module):
    """The module that is trained: `model` and what the objective adds to it. `forward` maps a `Batch` to a `Loss`."""

    model: Model
    chunk_loss: ChunkLoss = staticmethod(chunk_loss)  # arithmetic of the tokens' loss; compiled where the run compiles

    def forward(self, batch: Batch) -> Loss:
        raise NotImplementedError

    def flops_per_token(self, seq_len: float) -> float:
        """Return the floating-point operations of a token's forward and backward pass in sequences of that length."""
        return self.model.flops_per_token(seq_len)

    def initial(self, name: str) -> Initial:
        """Return the distribution of a tensor's initial values; an objective overrides it for parameters of its own."""
        return self.model.initial(name.removeprefix("model."))


class ObjectiveConfig:
    """A choice of the config group `objective`."""

    kind: ClassVar[ModelKind]  # of the models that it trains; not a setting
    covers_text: ClassVar[bool] = False  # every token of the text is a target once: the loss is bits per byte, too
    wants_special_tokens: ClassVar[bool] = False  # at both ends of every sequence: [CLS], [SEP]
    rewrites_documents: ClassVar[bool] = False  # each by itself: a sequence must not hold several
    predicts_tokens: ClassVar[bool] = True  # by the model's own head; else models are built without one

    @property
    def pairs(self) -> bool:
        """Whether it makes pairs of documents' parts: sequences with segments 0 and 1."""
        return False

    def check_tokenizer(self, tokenizer: TokenizerParts, seq_len: int) -> None:
        """Raise `ConfigError` for a tokenizer that the objective cannot work with; this default accepts everything.

        `seq_len` are the tokens of the longest sequences. Called before text is prepared with the tokenizer.
        """

    def build(self, model: Model) -> Objective:
        """Return the module that is trained."""
        raise NotImplementedError

    def densest(self, sequences: int, seq_len: int) -> Inputs:
        """Return inputs as large as those of so many sequences of that length can be; all ids are 0."""
        return of_zeros(sequences, seq_len, targets=seq_len)

    def decoder_start(self, vocabulary: Callable[[], Vocabulary]) -> int | None:
        """Return the id that a decoder sees first; None for models whose decoders, if any, see no source."""
        return None

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function from slots to inputs: a pure function of the slots, their keys and the seed.

        `vocabulary` reads that of the corpus, which takes a while: call it only if it is needed. `seq_len` are the
        tokens of the longest sequences; none of those that are made of them is longer, on either side.

        Raises `ConfigError` as `check_tokenizer` does: the corpus may have been prepared earlier.
        """
        raise NotImplementedError


@dataclass(kw_only=True)
class TokenLossConfig(ObjectiveConfig):
    """What objectives share that predict tokens of the vocabulary: their loss goes over the tokens in chunks."""

    chunk_tokens: int | None = None  # tokens whose logits exist at once; null: 32 MiB of them on CPU, 1 GiB on a GPU

    def __post_init__(self) -> None:
        chunk = self.chunk_tokens
        check(chunk is None or chunk >= 1, "objective.chunk_tokens", chunk, "must be at least 1; null chooses")


def at_most(mean: float) -> float:
    """Return what a count that is drawn stays below: its mean with six times the root of it, Poisson's deviation."""
    return mean + 6 * math.sqrt(mean)


def of_zeros(sequences: int, length: int, *, targets: int, source: int = 0) -> Inputs:
    """Return sequences of one length whose ids are 0, each with so many targets and, if any, tokens of a source."""
    wanted = np.full((sequences, length), IGNORED)
    wanted[:, :targets] = 0

    def stream(length: int) -> Ragged:
        offsets = np.arange(sequences + 1, dtype=np.int32) * np.int32(length)
        return Ragged(np.zeros(sequences * length, dtype=np.int64), offsets)

    tokens, offsets = stream(length)
    return Inputs(tokens, wanted.reshape(-1), offsets, source=stream(source) if source else None)
