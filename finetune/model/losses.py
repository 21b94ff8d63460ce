"""The losses of tasks: sums over the targets of a micro-batch, from the logits of its sequences or tokens.

The training loop divides by the targets of the global batch. Letters: S sequences, N tokens, C outputs of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.batch import IGNORED, Batch
from pretrain.errors import check


class ClassWeights(StrEnum):
    """How much the examples of a class count in the loss."""

    none = "none"  # as much as all others
    balanced = "balanced"  # inversely to how many there are, so that classes count the same (King and Zeng 2001)


class TaskLoss(Protocol):
    """A task's loss. It is called with fp32 logits and a batch that has targets."""

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum over targets, (), with its graph, and how many of them the model got right, ()."""
        ...


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy of one label a sequence, (S,) int64, or else of one a token: targets (N,), IGNORED where none."""

    smoothing: float = 0.0  # share of a target's probability that is spread over all classes (Szegedy et al. 2016)
    weights: tuple[float, ...] | None = None  # of each class, 1 on average over the training set

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        targets = batch.targets if batch.labels is None else batch.labels
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        options = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": self.smoothing}
        return F.cross_entropy(logits, targets, weight, **options), (logits.argmax(1) == targets).sum()


@dataclass(frozen=True)
class MultiLabel:
    """Binary cross-entropy, the mean over classes, each of which may apply or not; labels (S, C) of 0 and 1."""

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.labels is not None
        total = F.binary_cross_entropy_with_logits(logits, batch.labels.float(), reduction="none").mean(1).sum()
        return total, ((logits > 0) == (batch.labels > 0.5)).all(1).sum()


@dataclass(frozen=True)
class Regression:
    """Squared error of one number a sequence; labels (S,). No prediction counts as right."""

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.labels is not None
        return F.mse_loss(logits[:, 0], batch.labels.float(), reduction="sum"), logits.new_zeros(())


@dataclass(frozen=True)
class AnswerSpans:
    """Mean of the cross-entropies of an answer's first and last token among those of its sequence (Devlin et al. 2019).

    Labels (S, 2) int64 are places in the sequence; those of a question without an answer are 0, 0.
    """

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.labels is not None
        lengths = batch.offsets.diff()
        owner = torch.arange(len(lengths), device=logits.device).repeat_interleave(lengths, output_size=len(logits))
        largest = logits.new_full((len(lengths), 2), -torch.inf)
        largest = largest.scatter_reduce(0, owner[:, None].expand(-1, 2), logits.detach(), "amax")
        sums = torch.zeros_like(largest).index_add(0, owner, (logits - largest[owner]).exp())
        places = batch.offsets[:-1, None] + batch.labels
        chosen = logits.gather(0, places)
        nll = largest + sums.log() - chosen
        return nll.mean(1).sum(), (chosen.detach() == largest).all(1).sum()


def balanced_weights(targets: np.ndarray, names: list[str], *, of: str) -> tuple[float, ...]:
    """Return the weight of each class: T / (C n) where n of T targets have it, so that the mean over targets is 1.

    `targets` (T,) are those of the training set; `of` says in messages what has a target, an example or a word. Raises
    `ConfigError` for a class that no target has.
    """
    counts = np.bincount(targets, minlength=len(names))
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    rule = f"no {of} of the training set has {', '.join(missing)}; take them out of task.labels, or set none"
    check(not missing, "task.class_weights", ClassWeights.balanced, rule)
    return tuple((counts.sum() / (len(names) * counts)).tolist())
