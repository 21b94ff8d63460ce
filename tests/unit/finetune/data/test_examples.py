"""Encoded examples: a batch is what one would write by hand, and the hash tells what training sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.examples import Example, Examples
from pretrain.data.batch import IGNORED

ROWS = [
    Example([5, 6, 7], [0, 0, 1], 1, [IGNORED, 2, IGNORED]),
    Example([8], [0], 0, [3]),
    Example([9, 10], [0, 1], 2, [IGNORED, IGNORED]),
]


def test_a_batch_is_what_one_would_write_by_hand():
    batch = Examples.of(ROWS).batch(np.array([2, 0]))
    assert batch.tokens.tolist() == [9, 10, 5, 6, 7] and batch.tokens.dtype == torch.int64
    assert batch.positions.tolist() == [0, 1, 0, 1, 2]
    assert batch.offsets.tolist() == [0, 2, 5] and batch.offsets.dtype == torch.int32
    assert (batch.max_len, batch.lengths) == (3, [2, 3])
    assert batch.segments.tolist() == [0, 1, 0, 0, 1]
    assert batch.labels.tolist() == [2, 1] and batch.labels.dtype == torch.int64
    assert batch.targets.tolist() == [IGNORED, IGNORED, IGNORED, 2, IGNORED]
    assert batch.num_targets == 2, "labels count"


def test_without_labels_the_targets_of_tokens_count():
    batch = Examples.of([row._replace(label=None) for row in ROWS]).batch(np.array([0, 1, 2]))
    assert batch.labels is None and batch.num_targets == 2


def test_without_answers_nothing_counts():
    batch = Examples.of([Example([5, 6], [0, 0])]).batch(np.array([0]))
    assert batch.labels is None and batch.num_targets == 0 and batch.targets.tolist() == [IGNORED] * 2


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([1, 0], np.int64), ([0.5, 2.0], np.float32), ([[0, 1], [1, 1]], np.int64), ([[0, 3], [2, 2]], np.int64)],
)
def test_labels_keep_their_kind(labels, dtype):
    examples = Examples.of([Example([5], [0], label) for label in labels])
    assert examples.labels.dtype == dtype and examples.labels.tolist() == labels
    assert examples.batch(np.array([1])).labels.tolist() == labels[1:]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_a_batch_has_each_example_whole(lengths, data):
    rows = [
        Example([100 * row + place for place in range(length)], [row % 2] * length, row)
        for row, length in enumerate(lengths)
    ]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
    batch = Examples.of(rows).batch(np.array(chosen))
    parts = batch.tokens.split(batch.lengths)
    assert [part.tolist() for part in parts] == [rows[number].tokens for number in chosen]
    assert [part.tolist() for part in batch.segments.split(batch.lengths)] == [
        rows[number].segments for number in chosen
    ]
    assert batch.labels.tolist() == chosen


def test_the_context_is_what_attention_costs_by():
    """Of 6 tokens 3 lie in a text of 3, 1 in one of 1 and 2 in one of 2."""
    shares = Examples.of(ROWS).shares
    assert sum(length * share for length, share in shares) == pytest.approx((3 * 3 + 1 * 1 + 2 * 2) / 6)


def test_the_hash_tells_whatever_training_sees():
    known = Examples.of(ROWS)
    others = [
        Examples.of(ROWS[::-1]),
        Examples.of([ROWS[0], ROWS[1], ROWS[2]._replace(tokens=[9, 11])]),
        Examples.of([ROWS[0], ROWS[1], ROWS[2]._replace(segments=[0, 0])]),
        Examples.of([ROWS[0], ROWS[1], ROWS[2]._replace(label=1)]),
        Examples.of([ROWS[0], ROWS[1], ROWS[2]._replace(targets=[IGNORED, 1])]),
        replace(known, offsets=np.array([0, 2, 4, 6])),
        replace(known, labels=known.labels.astype(np.float32)),
    ]
    assert len({one.sha256 for one in (known, *others)}) == 1 + len(others)
    assert Examples.of(list(ROWS)).sha256 == known.sha256
