"""How work is dealt out; that ranks who share it get what one alone gets is in tests/dist/test_muon.py."""

from itertools import product

from pretrain.optim.shared_matrices import deal


def test_work_is_dealt_out_evenly():
    costs = [7, 1, 5, 5, 3, 2, 2, 1]
    owners = deal(costs, 3)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(3)]
    best = min(
        max(sum(cost for cost, owner in zip(costs, dealt, strict=True) if owner == rank) for rank in range(3))
        for dealt in product(range(3), repeat=len(costs))
    )
    assert max(loads) == best
    assert deal([4, 4, 4, 4], 2) == [0, 1, 0, 1], "equal matrices go round"
    assert sorted(deal([4, 2], 5)) == [0, 1], "ranks without a matrix have nothing to do"
