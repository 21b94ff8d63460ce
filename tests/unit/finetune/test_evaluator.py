"""Answers to a data set: in its order and worth the same, on any number of ranks."""

import numpy as np
import pytest
import torch
from rank_threads import on_threads
from torch import nn

from finetune.data.examples import Example, Examples
from finetune.evaluator import answers
from pretrain.data.batch import IGNORED
from pretrain.errors import NumericalError
from pretrain.hub.heads import HeadKind
from pretrain.objectives.base import Loss

LENGTHS = [3, 7, 1, 5, 5, 2, 6]


class Telling(nn.Module):
    """Answers with what it sees, of each sequence or each token; loses an eighth nat times a target's value."""

    def __init__(self, kind, broken=None):
        super().__init__()
        self.kind, self.broken = kind, broken

    def forward(self, batch):
        assert not self.training
        if self.kind is HeadKind.sequence:
            seen = torch.stack([batch.tokens[batch.offsets[:-1]], batch.offsets.diff()], dim=1)
            values = batch.labels if batch.labels is not None else torch.zeros(0)
        else:
            seen, values = torch.stack([batch.tokens, batch.positions], dim=1), batch.targets[batch.targets != IGNORED]
        logits = seen.float()
        logits[batch.tokens[: len(logits)] == self.broken] = torch.inf
        nll = values.sum() / 8
        return Loss(nll, nll, torch.tensor(0), logits=logits)


def examples_of(kind):
    if kind is HeadKind.sequence:
        return Examples.of([Example([e + 1] * size, [0] * size, e) for e, size in enumerate(LENGTHS)])
    targets = [[IGNORED, *range(1, size)] for size in LENGTHS]
    return Examples.of([Example([e + 1] * len(own), [0] * len(own), targets=own) for e, own in enumerate(targets)])


def answer(world, kind, **fields):
    module = Telling(kind, **fields)
    found = answers(module, examples_of(kind), kind=kind, outputs=2, max_tokens=8, world=world)
    assert module.training
    return found


@pytest.mark.parametrize("kind", [HeadKind.sequence, HeadKind.token])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_answers_are_those_of_one_rank_in_the_order_of_the_data(kind, size):
    if kind is HeadKind.sequence:
        logits = [[e + 1, length] for e, length in enumerate(LENGTHS)]
        loss = sum(range(len(LENGTHS))) / 8 / len(LENGTHS)
    else:
        logits = [[[e + 1, place] for place in range(length)] for e, length in enumerate(LENGTHS)]
        loss = sum(sum(range(length)) for length in LENGTHS) / 8 / sum(length - 1 for length in LENGTHS)
    for found in on_threads(size, lambda world: answer(world, kind)):
        assert [np.asarray(each).tolist() for each in found.logits] == logits
        assert found.loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_outputs_that_are_not_finite_are_counted_and_refused_by_all_ranks(size):
    for error in on_threads(size, lambda world: answer(world, HeadKind.token, broken=4)):
        assert isinstance(error, NumericalError) and str(error).startswith(
            "5 of 29 outputs of the model are not finite"
        )
