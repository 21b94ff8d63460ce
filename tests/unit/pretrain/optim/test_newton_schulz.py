"""The batched iteration against the one of the paper, in float64, a matrix at a time."""

import pytest
import torch

from pretrain.optim import newton_schulz
from pretrain.optim.newton_schulz import flops, orthogonalize_


def iterate(matrix, steps):
    """Jordan et al. 2024 for one matrix, whichever side is longer."""
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (6, 6), (1, 4)])
@pytest.mark.parametrize("held", [10**6, 80])
def test_a_batch_is_what_the_paper_does_to_each_matrix(monkeypatch, rows, columns, held):
    monkeypatch.setattr(newton_schulz, "_BATCH_ELEMENTS", held)  # all in one batch, and two at a time
    matrices = torch.randn(5, rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrices *= torch.tensor([1.0, 1e-4, 1e6, 0.0, 3.0], dtype=torch.float64)[:, None, None]
    expected = torch.stack([iterate(matrix, 5) for matrix in matrices])
    orthogonalize_(matrices, 5)
    torch.testing.assert_close(matrices, expected, rtol=0, atol=1e-12)
    assert (matrices[3] == 0).all(), "a matrix without a gradient stays as it is"


def test_the_formula_counts_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        orthogonalize_(torch.randn(3, 10, 4), 5)
    assert counter.get_total_flops() == 3 * flops(10, 4, 5) == 3 * flops(4, 10, 5)
