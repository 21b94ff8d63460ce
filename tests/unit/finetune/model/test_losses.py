"""Losses of tasks against formulas in float64: smoothing, weights, spans, and what counts as right."""

import math

import numpy as np
import pytest
import torch
from small_models import ragged_batch

from finetune.model.losses import AnswerSpans, CrossEntropy, MultiLabel, Regression, balanced_weights
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError

LENGTHS = [4, 1, 3]
WEIGHTS = (0.5, 2.0, 1.25)


def logits_of(rows, columns, seed=4):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_a_label_is_smoothed_over_all_classes_each_with_its_weight(kind, smoothing, weights):
    """Szegedy et al. 2016, section 7: (1 - e) of the target's own, e / C of each class, all of them weighted."""
    targets = [2, IGNORED, 0, 1, 1, 0, IGNORED, 2]
    logits, batch = logits_of(len(targets), 3), ragged_batch([1] * len(targets))
    setattr(batch, kind, torch.tensor(targets))
    total, right = CrossEntropy(smoothing=smoothing, weights=weights)(logits, batch)
    expected, hits = 0.0, 0
    for row, target in zip(logits.tolist(), targets, strict=True):
        if target == IGNORED:
            continue
        normaliser = math.log(sum(map(math.exp, row)))
        paid = [(weights or (1, 1, 1))[each] * (normaliser - row[each]) for each in range(3)]
        expected += (1 - smoothing) * paid[target] + smoothing * sum(paid) / 3
        hits += row[target] == max(row)
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert right == hits and 0 < hits < 6


def test_labels_of_sequences_are_read_if_there_are_any_else_targets_of_tokens():
    logits, batch = logits_of(3, 2), ragged_batch([1, 1, 1])
    batch.labels, batch.targets = torch.tensor([0, 0, 1]), torch.tensor([1, IGNORED, 0])
    paid = -logits.log_softmax(1)
    assert CrossEntropy()(logits, batch)[0].item() == pytest.approx((paid[0, 0] + paid[1, 0] + paid[2, 1]).item())
    batch.labels = None
    assert CrossEntropy()(logits, batch)[0].item() == pytest.approx((paid[0, 1] + paid[2, 0]).item())


def test_classes_that_may_hold_together_count_as_one_mean_and_are_right_together():
    logits, batch = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.25, 1.0]]), ragged_batch([1, 1])
    batch.labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    total, right = MultiLabel()(logits, batch)
    signed = [[2.0, 1.0, 0.5], [3.0, 0.25, -1.0]]  # the logit of what holds
    expected = sum(math.log1p(math.exp(-each)) / 3 for row in signed for each in row)
    assert total.item() == pytest.approx(expected, rel=1e-6) and right == 1


def test_a_number_costs_its_squared_error():
    batch = ragged_batch([1, 1])
    batch.labels = torch.tensor([1.0, -2.0])
    total, right = Regression()(torch.tensor([[1.5], [1.0]]), batch)
    assert (total.item(), right.item()) == (0.25 + 9, 0)


def test_a_span_costs_the_mean_of_its_ends_among_the_tokens_of_its_text():
    logits, batch = logits_of(sum(LENGTHS), 2), ragged_batch(LENGTHS)
    logits[3] += 50  # far above all others of its text
    logits[:4] += 900  # and all of that text above the others: e^900 is infinite
    labels = [(1, 3), (0, 0), (0, 2)]
    batch.labels = torch.tensor(labels)
    logits.requires_grad_()
    total, right = AnswerSpans()(logits, batch)
    expected, hits, gradient, begin = 0.0, 0, torch.zeros_like(logits), 0
    for length, ends in zip(LENGTHS, labels, strict=True):
        own = logits.detach()[begin : begin + length]
        for side, place in enumerate(ends):
            column = own[:, side].tolist()
            largest = max(column)
            expected += (largest + math.log(sum(math.exp(each - largest) for each in column)) - column[place]) / 2
            gradient[begin : begin + length, side] = own[:, side].softmax(0) / 2
            gradient[begin + place, side] -= 0.5
        hits += all(own[:, side].argmax() == place for side, place in enumerate(ends))
        begin += length
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert right == hits
    total.backward()
    torch.testing.assert_close(logits.grad, gradient)


def test_a_span_is_right_only_if_both_of_its_ends_are():
    logits, batch = torch.zeros(3, 2), ragged_batch([3])
    logits[1, 0] = logits[2, 1] = 4.0
    for labels, right in (((1, 2), 1), ((1, 1), 0), ((0, 2), 0)):
        batch.labels = torch.tensor([labels])
        assert AnswerSpans()(logits, batch)[1] == right


def test_balanced_weights_make_classes_count_the_same():
    targets = np.array([0] * 6 + [1] * 3 + [2])
    weights = balanced_weights(targets, ["a", "b", "c"], of="example")
    assert weights == pytest.approx((10 / 18, 10 / 9, 10 / 3))
    assert np.array(weights)[targets].mean() == pytest.approx(1)
    with pytest.raises(ConfigError, match="no example of the training set has b, d"):
        balanced_weights(np.array([0, 2]), ["a", "b", "c", "d"], of="example")
