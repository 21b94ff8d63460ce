"""The laws that every attention backend keeps, for any device and precision; used by tests/unit and tests/gpu."""

from itertools import accumulate, pairwise, repeat

import pytest
import torch
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.models.attention.disentangled import DisentangledBias, LogBuckets
from pretrain.models.attention.eager import eager
from pretrain.models.attention.relative import RelativeBias
from pretrain.models.base import Attend, Bias, Layout

# (query lengths, key lengths or None for self-attention)
CASES = [
    ([6], None),
    ([5, 5, 5], None),
    ([1, 7, 3, 7, 7, 30], None),
    ([200, 100, 100, 1, 150], None),
    ([0, 4, 0, 2], None),
    ([1, 1, 1], [4, 4, 4]),  # decoding with a cache, one common length
    ([1, 3, 2], [7, 3, 9]),  # decoding with a cache, several positions at once
    ([2, 2], [9, 9]),
    ([3, 50], [40, 50]),
]
MASKS = [(True, None), (True, 3), (True, 1), (True, 1000), (False, None), (False, 3)]  # (causal, window)
HEADS = [(4, 4), (4, 2), (4, 1)]  # (query heads, key-value heads)
BIASES = ["relative", "disentangled"]  # see `random_bias`


def offsets(lengths: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def layout(q_lengths: list[int], k_lengths: list[int] | None = None, device: str = "cpu") -> Layout:
    if k_lengths is None:
        return Layout.of(offsets(q_lengths, device), max(q_lengths))
    return Layout(offsets(q_lengths, device), offsets(k_lengths, device), max(q_lengths), max(k_lengths))


def random_qkv(q_tokens: int, k_tokens: int, heads: tuple[int, int], device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(q_tokens + k_tokens)
    shapes = ((q_tokens, heads[0], 16), (k_tokens, heads[1], 16), (k_tokens, heads[1], 16))
    drawn = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return [x.requires_grad_() for x in drawn]


def random_table(heads: int, device: str = "cpu") -> Tensor:
    """Return a table of relative positions with so few buckets, (8, heads), that short sequences reach them all."""
    drawn = torch.randn((8, heads), generator=torch.Generator().manual_seed(heads))
    return drawn.to(device).requires_grad_()


def random_bias(
    kind: str, q_tokens: int, k_tokens: int, heads: int, *, causal: bool, device: str = "cpu"
) -> tuple[Bias, list[Tensor]]:
    """Return a bias, whose buckets short sequences reach, and the tensors that it is made of."""
    if kind == "relative":
        table = random_table(heads, device)
        return RelativeBias(table, bidirectional=not causal, max_distance=20), [table]
    generator = torch.Generator().manual_seed(heads)
    drawn = (torch.randn((count, heads, 8), generator=generator).to(device) for count in (q_tokens, k_tokens))
    terms = [x.requires_grad_() for x in drawn]
    return DisentangledBias(LogBuckets(buckets=4, max_distance=20), *terms), terms


def check_agrees_with_eager(
    attend: Attend,
    case: tuple[list[int], list[int] | None],
    mask: tuple[bool, int | None],
    heads: tuple[int, int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
    scale: float | None = None,
    biased: str | None = None,
) -> None:
    """Values and gradients equal those of the reference, which refuses the same; `biased` is a kind of bias.

    In half precision they do so as a whole: FlashAttention's arithmetic, weights and their gradients rounded to bf16,
    is off by 0.002, and by 0.007 where scores are not scaled.
    """
    (q_lengths, k_lengths), (causal, window) = case, mask
    inputs = random_qkv(sum(q_lengths), sum(k_lengths or q_lengths), heads, device, dtype)
    bias, terms = None, []
    if biased:
        bias, terms = random_bias(biased, len(inputs[0]), len(inputs[1]), heads[0], causal=causal, device=device)
    options = {"causal": causal, "window": window, "scale": scale, "bias": bias}
    if window is not None and not causal and k_lengths is not None:
        for backend in (eager, attend):
            with pytest.raises(ConfigError, match=f"model.window={window}: a window on both sides"):
                backend(*inputs, layout(q_lengths, k_lengths, device), **options)
        return
    inputs = [*inputs, *terms]
    results = []
    for backend in (eager, attend):
        out = backend(*inputs[:3], layout(q_lengths, k_lengths, device), **options)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for index, (expected, found) in enumerate(zip(*results, strict=True)):
        allowed = tolerance * (10 if index >= 4 else 1)  # a bias's gradient is a sum over pairs
        if dtype.itemsize == 2:  # rounded weights move single values by a tenth where scores are far apart
            assert size(found - expected) <= allowed * (1 + size(expected))
        else:
            torch.testing.assert_close(found, expected, atol=allowed, rtol=allowed)


def size(x: Tensor) -> float:
    """Return the root of the mean square of all elements."""
    return x.detach().double().square().mean().sqrt().item()


def check_drops_weights(
    attend: Attend,
    lengths: list[int],
    mask: tuple[bool, int | None],
    heads: tuple[int, int] = (4, 4),
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
) -> None:
    """A seed decides what is dropped, backwards as forwards; over many seeds the mean is what it is without dropout."""
    inputs = random_qkv(sum(lengths), sum(lengths), heads, device, dtype)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    causal, window = mask

    def results(seed: int, dropout: float) -> list[Tensor]:
        torch.manual_seed(seed)
        options = {"causal": causal, "window": window, "dropout": dropout}
        out = attend(*inputs, layout(lengths, device=device), **options)
        return [x.detach().double() for x in (out, *torch.autograd.grad(out, inputs, upstream))]

    first, again, other = results(0, 0.25), results(0, 0.25), results(1, 0.25)
    for one, same in zip(first, again, strict=True):
        torch.testing.assert_close(one, same, atol=tolerance, rtol=tolerance)
    assert all((one - another).abs().max() > 0.05 for one, another in zip(first, other, strict=True))
    # Each channel of a head is linear in that of the values: <upstream, out> is <value, its gradient> by that channel,
    # if both were made with the same weights. With others, this is 0.3 and more.
    forwards = (upstream * first[0]).sum(0).unflatten(0, (heads[1], -1)).sum(1)
    backwards = (inputs[2].detach() * first[3]).sum(0)
    assert (forwards - backwards).norm() < 0.05 * forwards.norm()
    seeds = 60
    drawn = [results(seed, 0.25) for seed in range(seeds)]
    for expected, *found in zip(results(0, 0.0), *drawn, strict=True):
        values = torch.stack(found)
        off = (values.mean(0) - expected) / (values.std(0) / seeds**0.5 + tolerance)
        assert off.abs().max() < 6.5 and off.square().mean() < 1.5  # standard errors


def check_isolates_sequences(
    attend: Attend,
    mask: tuple[bool, int | None],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
    biased: str | None = None,
) -> None:
    """A sequence in a pack gets what it gets alone, and passes exactly no gradient to its neighbours."""
    lengths, (causal, window) = [9, 1, 40, 7, 7, 130], mask
    q, k, v = random_qkv(sum(lengths), sum(lengths), (4, 2), device, dtype)
    bias, terms, options = None, [], {"causal": causal, "window": window}
    if biased:
        bias, terms = random_bias(biased, len(q), len(k), 4, causal=causal, device=device)
    packed = attend(q, k, v, layout(lengths, device=device), bias=bias, **options)
    of_tokens = [q, k, v, *(term for term in terms if len(term) == len(q))]
    ends = offsets(lengths).tolist()
    own_bias = repeat(None) if bias is None else bias.cut(*[lambda x: x.split(lengths)] * 2)
    for (start, end), part in zip(pairwise(ends), own_bias, strict=False):
        own = slice(start, end)
        alone = attend(q[own], k[own], v[own], layout([end - start], device=device), bias=part, **options)
        torch.testing.assert_close(packed[own], alone, atol=tolerance, rtol=tolerance)
        gradients = torch.autograd.grad(packed[own].float().square().sum(), of_tokens, retain_graph=True)
        assert gradients[2][own].any()
        for gradient in gradients:
            assert not gradient[:start].any()
            assert not gradient[end:].any()
