"""Multiple choice while a model trains: which of several texts it holds likeliest after a context.

Holds the measurement through the module that a strategy wrapped; reading and encoding are in `data.choice_sets`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.data.batch import IGNORED, Batch, Inputs
from pretrain.data.choice_sets import ChoiceSet, Row
from pretrain.distributed.world import World
from pretrain.models.base import Model
from pretrain.objectives.cross_entropy import CPU_CHUNK_BYTES, DEVICE_CHUNK_BYTES
from pretrain.tracking.base import CHOICES, RAW
from pretrain.tracking.no_value import no_value
from pretrain.train.evaluation.hidden_states import hidden_states


@dataclass(kw_only=True)
class ChoiceEvaluator:
    """Measures a decoder on the same questions at each evaluation. A collective: every rank calls it.

    A choice's score is the sum of the log-probabilities of its tokens, divided by its UTF-8 bytes: otherwise the
    shortest choice would be the likeliest (Brown et al. 2020, section 2.4, who divide by tokens). With bytes, models of
    different tokenizers can be compared.
    """

    module: nn.Module  # as the strategy wrapped it
    model: Model  # inside of it
    sets: Sequence[ChoiceSet]
    batch_tokens: int  # in a pass at most, not below those of any row
    world: World
    progress: Callable[[int, int], None] | None = None  # called with the number of rows read so far, and of all

    def __call__(self) -> dict[str, float]:
        """Return `choices/NAME`, the share of each set's questions answered rightly, and `choices/NAME/raw`.

        The latter compares sums that are not divided. A batch holds the same rows on any number of ranks, which
        therefore does not decide how scores are rounded. Where scores are not finite both are NaN, which is logged.
        """
        rows = [row for each in self.sets for row in each.rows]
        if not rows:
            return {}
        scores = self._scores(rows)
        found: dict[str, float] = {}
        start = 0
        for each in self.sets:
            own = scores[start : start + len(each.rows)]
            start += len(each.rows)
            names = CHOICES + each.name, CHOICES + each.name + RAW
            if np.isfinite(own).all():
                found |= dict(zip(names, map(each.accuracy, (own / each.text_bytes, own)), strict=True))
            else:
                found |= no_value(*names, why="the model's log-probabilities are not finite numbers")
        return found

    def _scores(self, rows: list[Row]) -> np.ndarray:
        """Return the log-likelihood in nats of each row's choice, given its context, (R,) float64."""
        device, world = self.world.device, self.world
        scores = torch.zeros(len(rows), dtype=torch.float64, device=device)
        places = targets = owners = torch.empty(0, dtype=torch.int64, device=device)  # of the measured ids of a batch

        def score(hidden: Tensor) -> None:
            found = log_likelihoods(hidden[places], self.model.head_weight(), targets)
            scores.index_add_(0, owners, found.double())

        batches = batches_of([len(row.ids) - 1 for row in rows], self.batch_tokens)
        with hidden_states(self.module, self.model, score):
            for first in range(0, len(batches), world.size):
                own = batches[first : first + world.size][world.rank :][:1]  # none: this rank has no batch in this turn
                numbers = own[0] if own else range(0)
                batch, measured = batch_of(rows, numbers)
                places, targets, owners = torch.from_numpy(measured).to(device)
                self.module(batch.to(device))
                if self.progress:
                    self.progress(batches[min(first + world.size, len(batches)) - 1].stop, len(rows))
        return world.sum_tensor(scores).cpu().numpy()


def batches_of(lengths: Sequence[int], most: int) -> list[range]:
    """Return the numbers of rows that are read together, in order: as many as hold `most` tokens, or one."""
    batches: list[range] = []
    first = held = 0
    for number, length in enumerate(lengths):
        if held + length > most and number > first:
            batches.append(range(first, number))
            first, held = number, 0
        held += length
    return [*batches, range(first, len(lengths))]


def batch_of(rows: Sequence[Row], numbers: range) -> tuple[Batch, np.ndarray]:
    """Return the batch of some rows, which has no targets for the objective, and the M ids to score, (3, M) int64.

    These are where in the batch each is predicted, the id itself, and the number of its row.
    """
    if not numbers:
        return Batch.empty(), np.zeros((3, 0), dtype=np.int64)
    chosen = [rows[number] for number in numbers]
    tokens = np.concatenate([row.ids[:-1] for row in chosen]).astype(np.int64)
    offsets = np.cumsum([0, *(len(row.ids) - 1 for row in chosen)]).astype(np.int32)
    begun = zip(offsets[:-1], chosen, strict=True)
    places = np.concatenate([np.arange(start + row.given - 1, start + len(row.ids) - 1) for start, row in begun])
    targets = np.concatenate([row.ids[row.given :] for row in chosen])
    owners = np.repeat(np.array(numbers), [len(row.ids) - row.given for row in chosen])
    batch = Batch.of(Inputs(tokens, np.full_like(tokens, IGNORED), offsets))
    return batch, np.stack([places, targets, owners]).astype(np.int64)


def log_likelihoods(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability in nats of each target (M,) fp32, from hidden states (M, D) and the head (V, D).

    Logits exist for a chunk of the rows at a time, in the precision of the products; all else is in fp32.
    """
    budget = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else DEVICE_CHUNK_BYTES
    chunk = max(1, budget // (4 * len(weight)))
    found = [
        -F.cross_entropy(F.linear(part, weight).float(), ids, reduction="none")
        for part, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(found)
