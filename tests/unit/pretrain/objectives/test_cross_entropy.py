"""Chunked cross-entropy against torch's own over materialised logits, in float64 where exactness matters."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.batch import IGNORED
from pretrain.objectives.cross_entropy import ALIGNMENT, linear_cross_entropy

WIDTH, VOCAB_SIZE = 6, 11


def inputs(num_tokens, dtype=torch.float64, ignored=()):
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB_SIZE, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCAB_SIZE, (num_tokens,), generator=generator)
    targets[list(ignored)] = IGNORED
    return hidden, weight, targets


def reference(hidden, weight, targets, z_loss=0.0, bias=None, label_smoothing=0.0):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    options = {"ignore_index": IGNORED, "reduction": "sum"}
    nll = F.cross_entropy(logits, targets, **options)
    penalty = logits.logsumexp(1)[targets != IGNORED].square().sum()
    total = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, **options) + z_loss * penalty
    return total, nll, (logits.argmax(1) == targets).sum()


def chunked(hidden, weight, targets, **options):
    num_targets = int((targets != IGNORED).sum())
    return linear_cross_entropy(hidden, weight, targets, num_targets=num_targets, **options)


@settings(max_examples=60)
@given(
    num_tokens=st.integers(1, 23),
    ignored=st.sets(st.integers(0, 22)),
    z_loss=st.sampled_from([0.0, 0.3]),
    chunk_tokens=st.sampled_from([None, 1, 4, 23]),
    upstream=st.sampled_from([1.0, -0.7, 1e-3]),
    biased=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.2]),
    pad_weight=st.booleans(),
)
def test_values_and_gradients(num_tokens, ignored, chunk_tokens, upstream, biased, pad_weight, **changed):
    hidden, weight, targets = inputs(num_tokens, ignored=[i for i in ignored if i < num_tokens])
    bias = torch.randn(VOCAB_SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) if biased else None
    learnt = (hidden, weight) if bias is None else (hidden, weight, bias.requires_grad_())
    options = {"chunk_tokens": chunk_tokens, "pad_weight": pad_weight}
    total, nll, correct = chunked(hidden, weight, targets, bias=bias, **options, **changed)
    expected, expected_nll, expected_correct = reference(hidden, weight, targets, bias=bias, **changed)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, expected_nll)
    assert correct == expected_correct
    found = torch.autograd.grad(total * upstream, learnt)
    for gradient, wanted in zip(found, torch.autograd.grad(expected * upstream, learnt), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_nll_carries_no_graph_and_no_z_loss():
    hidden, weight, targets = inputs(7)
    total, nll, _ = chunked(hidden, weight, targets, z_loss=1.0)
    assert total.requires_grad
    assert not nll.requires_grad
    assert total > nll


def test_without_any_target_the_loss_is_zero_and_so_are_the_gradients():
    hidden, weight, targets = inputs(3, ignored=[0, 1, 2])
    total, nll, _ = chunked(hidden, weight, targets)
    total.backward()
    assert total == nll == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_rows_without_a_target_may_hold_anything():
    hidden, weight, targets = inputs(4, ignored=[1])
    expected = chunked(hidden, weight, targets)[0]
    with torch.no_grad():
        hidden[1] = float("nan")
    total = chunked(hidden, weight, targets)[0]
    assert total == expected
    total.backward()
    assert not weight.grad.isnan().any()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen):
    sides = dict(zip(("hidden", "weight", "targets"), inputs(5), strict=True))
    sides[frozen].requires_grad_(False)
    chunked(**sides)[0].backward()
    trained = sides["weight" if frozen == "hidden" else "hidden"]
    expected = torch.autograd.grad(reference(**sides)[0], trained)[0]
    torch.testing.assert_close(trained.grad, expected)
    assert sides[frozen].grad is None


def test_a_tied_weight_gets_both_gradients():
    _, weight, targets = inputs(5)
    tokens = torch.tensor([3, 1, 4, 1, 5])
    found = torch.autograd.grad(chunked(weight[tokens].tanh(), weight, targets)[0], weight)
    expected = torch.autograd.grad(reference(weight[tokens].tanh(), weight, targets)[0], weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_evaluation_computes_no_gradient(context):
    hidden, weight, targets = inputs(5)
    with context():
        total, nll, _ = chunked(hidden, weight, targets)
    assert not total.requires_grad
    torch.testing.assert_close(nll, reference(hidden, weight, targets)[1].detach())


def test_huge_logits_stay_finite():
    """The target's probability underflows in fp32, its negative log-likelihood does not."""
    hidden, weight, targets = inputs(9, torch.float32)
    for scale in (1e3, 1e4):
        total = chunked(hidden * scale, weight, targets)[0]
        torch.testing.assert_close(total, reference(hidden * scale, weight, targets)[0])
        total.backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_half_precision_and_sums_in_fp32(dtype):
    hidden, weight, targets = inputs(50, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        total, nll, _ = chunked(hidden, weight, targets, chunk_tokens=16)
    rounded = [x.detach().to(dtype).float().requires_grad_() for x in (hidden, weight)]
    expected = reference(*rounded, targets)[0]
    assert total.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-2, atol=0)
    total.backward()
    expected.backward()
    for found, wanted in zip((hidden, weight), rounded, strict=True):
        assert found.grad.dtype == torch.float32
        torch.testing.assert_close(found.grad, wanted.grad, rtol=2e-2, atol=5e-2)


def test_the_gradient_of_the_weight_is_summed_in_fp32():
    """Over 256 chunks; a sum in bf16 stops growing where the addends are below its last digit."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(rows, 32, generator=generator).bfloat16() for rows in (2048, 16))
    targets = torch.randint(16, (2048,), generator=generator)
    exact = weight.double().requires_grad_()
    reference(hidden.double(), exact, targets)[0].backward()
    master = weight.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked(hidden, master, targets, chunk_tokens=8)[0].backward()
    assert (master.grad - exact.grad).norm() < 2e-3 * exact.grad.norm()


def test_a_second_backward_pass_is_refused():
    hidden, weight, targets = inputs(5)
    total = chunked(hidden, weight, targets)[0]
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="used up"):
        total.backward()


def test_never_holds_all_logits():
    """A recorder of every tensor made sees at most one chunk of rows as wide as the vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    rows = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            wide = {(VOCAB_SIZE,), (ALIGNMENT,)}
            rows.extend(x.shape[0] for x in [out] if isinstance(x, torch.Tensor) and x.shape[1:] in wide)
            return out

    hidden, weight, targets = inputs(40)
    with Recorder():
        chunked(hidden, weight, targets, chunk_tokens=8)[0].backward()
    assert max(rows) == 8


@pytest.mark.parametrize("pad_weight", [False, True])
def test_half_precision_with_everything(pad_weight):
    hidden, weight, targets = inputs(20, torch.float32, ignored=[3])
    bias = torch.linspace(-1, 1, VOCAB_SIZE).requires_grad_()
    learnt, changed = (hidden, weight, bias), {"z_loss": 0.1, "label_smoothing": 0.2}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = chunked(hidden, weight, targets, bias=bias, pad_weight=pad_weight, chunk_tokens=8, **changed)[0]
    expected = reference(hidden, weight, targets, bias=bias, **changed)[0]
    torch.testing.assert_close(total, expected, rtol=1e-2, atol=0)
    wanted = torch.autograd.grad(expected, learnt)
    for found, exact in zip(torch.autograd.grad(total, learnt), wanted, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=2e-2, atol=5e-2)


def test_a_padded_head_of_negative_logits_predicts_no_id_beyond_the_vocabulary():
    """Zeros of the padding would be the largest logits, and most of the softmax."""
    hidden, weight = torch.ones(3, WIDTH), -torch.ones(VOCAB_SIZE, WIDTH)
    total, _, correct = chunked(hidden, weight, torch.tensor([0, 4, 10]), pad_weight=True)
    assert correct == 3
    torch.testing.assert_close(total, torch.tensor(3 * math.log(VOCAB_SIZE)))
