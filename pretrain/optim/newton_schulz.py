"""Orthogonalisation of matrices by Newton-Schulz iterations, many matrices of one shape at a time.

Holds the iteration and what it costs; which matrices a rank takes, and when, is decided in `shared_matrices`.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Jordan et al. 2024, "Muon": the steepest quintic at zero whose iterates keep singular values within about 0.7 to 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7  # below it a norm counts as this, so that a matrix of zeros stays one

_BATCH_ELEMENTS = 2**26  # in one batch: more fill a GPU no better, and three times their size is held beside them


def orthogonalize_(matrices: Tensor, steps: int) -> None:
    """Replace each matrix (N, R, C) by U V^T of its singular value decomposition, roughly, in the precision it has.

    After 5 steps singular values lie within 0.7 to 1.2, where the bf16 that Muon uses adds no error that matters.
    """
    each = max(1, _BATCH_ELEMENTS // matrices[0].numel())
    for batch in matrices.split(each):
        batch.copy_(_iterate(batch.mT, steps).mT if batch.shape[1] > batch.shape[2] else _iterate(batch, steps))


def _iterate(x: Tensor, steps: int) -> Tensor:
    """Return the iterate of wide matrices (N, R, C), R <= C: X <- a X + (b A + c A^2) X with A = X X^T."""
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_EPS)  # no singular value is above the Frobenius norm
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def flops(rows: int, columns: int, steps: int) -> int:
    """Return the operations of one matrix: with r the shorter side and c the longer, steps * (4 r^2 c + 2 r^3)."""
    short, long = sorted((rows, columns))
    return steps * (4 * short**2 * long + 2 * short**3)
