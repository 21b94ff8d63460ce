"""T5's relative positions: the buckets of transformers, and attention with them by a formula in float64."""

import math

import pytest
import torch
from attention_laws import layout, random_qkv

from pretrain.models.attention.eager import eager
from pretrain.models.attention.relative import Buckets, RelativeBias
from pretrain.models.attention.sdpa import sdpa

# Lengths whose buckets reach the logarithmic ones and the last: (query lengths, key lengths or None)
CASES = {
    "uneven": ([300, 17, 129], None),
    "one length": ([140, 140], None),
    "copied into buckets": ([5, 31, 4, 60, 20, 2, 44, 1, 9, 30], None),
    "cache": ([1, 5, 2], [140, 5, 300]),
    "cache, one length": ([2, 2], [150, 150]),
    "cache, one query": ([1, 1, 1, 1], [40, 37, 150, 39]),
}


def their_buckets(relative, bidirectional, num_buckets=32, max_distance=128):
    from transformers.models.t5.modeling_t5 import T5Attention

    return T5Attention._relative_position_bucket(relative, bidirectional, num_buckets, max_distance)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_are_those_of_transformers(bidirectional, num_buckets, max_distance):
    relative = torch.arange(-2048, 2049)
    expected = their_buckets(relative, bidirectional, num_buckets, max_distance)
    found = Buckets(num_buckets, bidirectional, max_distance).rows(relative)
    assert torch.equal(found, expected)
    assert found.unique().numel() == num_buckets - bidirectional, "distance 0 has no bucket among keys after the query"


def formula(q, k, v, table, q_lengths, k_lengths, causal, scale):
    """Return attention one sequence at a time, with a matrix of buckets for each."""
    outs = []
    for query, key, value in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True):
        end = len(key) - len(query)  # the last query stands at the last key
        relative = torch.arange(len(key)) - torch.arange(end, len(key))[:, None]
        bias = table[their_buckets(relative, not causal)].permute(2, 0, 1)
        scores = torch.einsum("qhe,khe->hqk", query, key) * scale + bias
        if causal:
            scores = scores.masked_fill(relative > 0, -math.inf)
        outs.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), value))
    return torch.cat(outs)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attend", [eager, sdpa])
def test_attention_with_relative_positions_is_the_formula(attend, case, causal, learned):
    """Values and gradients; those to the table, too, if it is `learned`: CPUs have a kernel of their own if not."""
    q_lengths, k_lengths = CASES[case][0], CASES[case][1] or CASES[case][0]
    table = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(learned)
    inputs = [*random_qkv(sum(q_lengths), sum(k_lengths), (2, 2), "cpu", torch.float32), table]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    bias = RelativeBias(table, bidirectional=not causal, max_distance=128)
    found = attend(*inputs[:3], layout(*CASES[case]), causal=causal, scale=1.0, bias=bias)
    expected = formula(*exact, q_lengths, k_lengths, causal, 1.0)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected.float(), atol=2e-5, rtol=2e-5)
    wanted = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad(found, wanted, upstream)
    exactly = torch.autograd.grad(expected, [x for x in exact if x.requires_grad], upstream.double())
    for ours, theirs in zip(gradients, exactly, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("case", ["uneven", "copied into buckets"])
def test_what_layers_share_holds_no_graph(case):
    """Blocks may be handed other casts of the table, and recomputation runs them again with the same layout."""
    q, k, v = random_qkv(*[sum(CASES[case][0])] * 2, (2, 2), "cpu", torch.float32)
    shared = layout(*CASES[case])
    tables = [torch.randn(32, 2, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (0, 1, 0)]
    outs = [sdpa(q, k, v, shared, causal=True, bias=RelativeBias(table, False, 128)) for table in tables]
    gradients = [torch.autograd.grad(out.square().sum(), table)[0] for out, table in zip(outs, tables, strict=True)]
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])
    assert torch.equal(gradients[0], gradients[2]), "bit for bit on a CPU"
