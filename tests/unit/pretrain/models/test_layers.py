"""Layers against their formulas in float64, one number at a time. Whole models: `hub/test_parity`."""

import math

import pytest
import torch

from pretrain.models.layers import MLP, Activation, Norm, activate, make_norm
from pretrain.models.rotary import rotary, rotate

FORMULAS = {
    Activation.gelu: lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    Activation.gelu_tanh: lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    Activation.swiglu: lambda x: x / (1 + math.exp(-x)),
    Activation.geglu: lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    Activation.geglu_tanh: lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    Activation.relu: lambda x: max(x, 0.0),
    Activation.silu: lambda x: x / (1 + math.exp(-x)),
}


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", Activation)
def test_each_nonlinearity_is_that_of_its_paper(kind):
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[kind](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activate(kind, x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", Activation)
def test_a_gate_comes_first_and_is_what_bends(kind):
    mlp = MLP(width=3, hidden=5, activation=kind, bias=True).double()
    for number, parameter in enumerate(mlp.parameters()):
        parameter.data.copy_(drawn(*parameter.shape, seed=number))
    x = drawn(4, 3, seed=9)
    inner = x @ mlp.up.weight.T + mlp.up.bias
    bent = torch.tensor([[FORMULAS[kind](value) for value in row[:5]] for row in inner.tolist()], dtype=torch.float64)
    expected = (bent * inner[:, 5:] if kind.gated else bent) @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)


def test_norms_divide_by_the_deviation_or_by_the_root_of_the_mean_square():
    x = drawn(3, 7) + 2
    rms = make_norm(Norm.rmsnorm, 7, 0.25, bias=False).double()
    layer = make_norm(Norm.layernorm, 7, 0.25, bias=True).double()
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(rms(x), x / (x.square().mean(1, keepdim=True) + 0.25).sqrt())
    torch.testing.assert_close(layer(x), centred / (centred.square().mean(1, keepdim=True) + 0.25).sqrt())


def test_pairs_are_rotated_by_their_positions_angle():
    """Su et al. 2021 with Llama's pairing: (i, i + E/2) turn by position * theta^(-2i/E)."""
    positions, theta = torch.tensor([0, 1, 17]), 100.0
    x = drawn(3, 2, 6)
    found = rotate(x, rotary(positions, 6, theta))
    for n, position in enumerate(positions.tolist()):
        for i in range(3):
            turn = complex(math.cos(position * theta ** (-2 * i / 6)), math.sin(position * theta ** (-2 * i / 6)))
            for head in range(2):
                turned = complex(x[n, head, i].item(), x[n, head, i + 3].item()) * turn
                assert found[n, head, i].item() == pytest.approx(turned.real, abs=1e-5)
                assert found[n, head, i + 3].item() == pytest.approx(turned.imag, abs=1e-5)
