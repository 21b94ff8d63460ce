"""Ranks that share matrices get what one rank gets by itself, however strategies cut them; and how work is dealt out.

The ranks are threads; over gloo, under every strategy, it is asked in tests/dist/test_muon.py.
"""

from itertools import pairwise, product

import pytest
import torch
from rank_threads import ThreadWorld, on_threads

from pretrain.optim.newton_schulz import orthogonalize_
from pretrain.optim.shared_matrices import Piece, SharedMatrices, deal

SHAPES = [(6, 4), (3, 7), (6, 4), (5, 5), (2, 9), (6, 4), (3, 7)]
MATRICES = [torch.randn(shape, generator=torch.Generator().manual_seed(number)) for number, shape in enumerate(SHAPES)]


def rows(rank, ranks):
    """Cut each matrix as `torch.chunk` cuts its rows: the last ranks may hold none."""
    spans = []
    for height, width in SHAPES:
        each = -(-height // ranks)
        first, last = (min(bound * each, height) * width for bound in (rank, rank + 1))
        spans.append((first, last - first))
    return spans


def flat(rank, ranks):
    """Cut all matrices, laid end to end, into equal parts, as ZeRO does."""
    total = sum(height * width for height, width in SHAPES)
    bounds = [total * bound // ranks for bound in (rank, rank + 1)]
    ends = torch.tensor([0] + [height * width for height, width in SHAPES]).cumsum(0).tolist()
    cuts = [[min(max(bound, start), end) - start for bound in bounds] for start, end in pairwise(ends)]
    return [(start, end - start) for start, end in cuts]


def alone(numbers):
    expected = {}
    for number in numbers:
        expected[number] = MATRICES[number].clone()
        orthogonalize_(expected[number][None], 5)
    return expected


@pytest.mark.parametrize(
    ("ranks", "replica", "cut"),
    [(1, 1, rows), (3, 1, rows), (2, 2, rows), (3, 3, rows), (4, 2, rows), (3, 3, flat), (9, 9, rows)],
    ids=["alone", "ddp", "fsdp2 on 2", "fsdp2 on 3", "hsdp", "zero", "more ranks than matrices"],
)
def test_ranks_get_what_one_gets(monkeypatch, ranks, replica, cut):
    sent, exchange = [], ThreadWorld.all_to_all

    def counted(world, elements, *sizes):
        sent.append(len(elements))
        return exchange(world, elements, *sizes)

    monkeypatch.setattr(ThreadWorld, "all_to_all", counted)

    def share(world):
        spans = cut(world.rank % replica, replica)
        pieces = [
            Piece(matrix.shape, *span, matrix, torch.Tensor.flatten)
            for matrix, span in zip(MATRICES, spans, strict=True)
        ]
        shared = SharedMatrices(world, pieces, replica, steps=5)
        found = []
        for numbers in (range(7), [1, 4], []):  # all at once, and as ZeRO calls for a group
            updates = {i: MATRICES[i].flatten().narrow(0, *spans[i]) for i in numbers}
            found.append((spans, shared.orthogonalized(updates)))
        return found

    for outcome in on_threads(ranks, share):
        assert not isinstance(outcome, Exception), outcome
        for numbers, (spans, found) in zip((range(7), [1, 4], []), outcome, strict=True):
            expected = alone(numbers)
            assert found.keys() == expected.keys()
            for i, part in found.items():
                torch.testing.assert_close(part, expected[i].flatten().narrow(0, *spans[i]), rtol=0, atol=1e-6)
    elements = sum(matrix.numel() for matrix in (*MATRICES, MATRICES[1], MATRICES[4]))
    assert sum(sent) == elements * (1 + ranks // replica), "to the owner once, and back to every replica"


def test_work_is_dealt_out_evenly():
    costs = [7, 1, 5, 5, 3, 2, 2, 1]

    def largest(owners):
        return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3))

    assert largest(deal(costs, 3)) == min(map(largest, product(range(3), repeat=len(costs))))
    assert deal([4, 4, 4, 4], 2) == [0, 1, 0, 1], "equal matrices go round"
    assert sorted(deal([4, 2], 5)) == [0, 1], "ranks without a matrix have nothing to do"
