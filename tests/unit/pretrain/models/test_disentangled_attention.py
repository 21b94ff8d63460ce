"""DeBERTa's relative positions: the rows of transformers, attention by a formula in float64, and encoders with them."""

import math

import pytest
import torch
from attention_laws import layout, random_qkv
from small_models import DEBERTA, ragged_batch, small_encoder
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.attention.disentangled import DisentangledBias, DistanceVectors, LogBuckets
from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Positions

# Lengths whose distances reach the shared buckets and the last: (query lengths, key lengths or None)
CASES = {
    "uneven": ([300, 17, 129], None),
    "one length": ([140, 140], None),
    "copied into buckets": ([5, 31, 4, 60, 20, 2, 44, 1, 9, 30], None),
    "other keys": ([1, 5, 2], [140, 5, 300]),
}
DISTANCES = [(256, 512), (8, 16), (2, 7), (16, 1000), (4, 4), (None, 9), (None, 512)]


def their_rows(relative, buckets, max_distance):
    """Return the rows of transformers' table for keys minus queries, as it computes them for both terms."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    behind, side = -relative, max_distance if buckets is None else buckets
    if buckets is not None:
        behind = make_log_bucket_position(behind, buckets, max_distance).long()
    return (behind + side).clamp(0, 2 * side - 1)


@pytest.mark.parametrize(("buckets", "max_distance"), DISTANCES)
def test_rows_are_those_of_transformers(buckets, max_distance):
    relative, distances = torch.arange(-2048, 2049), LogBuckets(buckets, max_distance)
    expected = their_rows(relative, buckets, max_distance)
    assert torch.equal(distances.rows(relative), expected)
    assert len(set(expected[: 2049 - distances.farthest].tolist())) == 1, "all share a row from there on"
    for length in (1, 2, 3, 4, 5, 9, 128, 129, 130, 300, 2000):
        within = torch.arange(1 - length, length)
        table = torch.arange(2 * distances.side)[:, None]
        part = DistanceVectors.of(table, distances, length)
        assert torch.equal(part.vectors[part.distances.rows(within)][:, 0], their_rows(within, buckets, max_distance))
        assert len(part.vectors) <= max(2 * length - 1, 2 * distances.side)


def formula(q, k, v, of_queries, of_keys, q_lengths, k_lengths, causal):
    """Return attention one sequence at a time, score by score of all pairs."""
    outs, q_start, k_start = [], 0, 0
    for num_q, num_k in zip(q_lengths, k_lengths, strict=True):
        queries, keys = slice(q_start, q_start + num_q), slice(k_start, k_start + num_k)
        q_start, k_start = q_start + num_q, k_start + num_k
        relative = torch.arange(num_k) - torch.arange(num_k - num_q, num_k)[:, None]
        rows = torch.nn.functional.one_hot(their_rows(relative, 8, 16), 16).double()
        scores = torch.einsum("qhe,khe->hqk", q[queries], k[keys]) * 0.3
        if of_queries is not None:
            scores = scores + torch.einsum("qkp,qhp->hqk", rows, of_queries[queries])
        if of_keys is not None:
            scores = scores + torch.einsum("qkp,khp->hqk", rows, of_keys[keys])
        if causal:
            scores = scores.masked_fill(relative > 0, -math.inf)
        outs.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v[keys]))
    return torch.cat(outs)


@pytest.mark.parametrize("terms", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attend", [eager, sdpa])
def test_attention_with_disentangled_positions_is_the_formula(attend, case, causal, terms):
    q_lengths, k_lengths = CASES[case][0], CASES[case][1] or CASES[case][0]
    counts, generator = (sum(q_lengths), sum(k_lengths)), torch.Generator().manual_seed(0)
    drawn = [torch.randn((count, 2, 16), generator=generator).requires_grad_() for count in counts]
    drawn = [x if there else None for x, there in zip(drawn, terms, strict=True)]
    inputs = [*random_qkv(*counts, (2, 2), "cpu", torch.float32), *drawn]
    exact = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    bias = DisentangledBias(LogBuckets(8, 16), *drawn)
    found = attend(*inputs[:3], layout(*CASES[case]), causal=causal, scale=0.3, bias=bias)
    expected = formula(*exact, q_lengths, k_lengths, causal)
    upstream = torch.randn(found.shape, generator=generator)
    torch.testing.assert_close(found, expected.float(), atol=2e-5, rtol=2e-5)
    gradients = torch.autograd.grad(found, [x for x in inputs if x is not None], upstream)
    exactly = torch.autograd.grad(expected, [x for x in exact if x is not None], upstream.double())
    for ours, theirs in zip(gradients, exactly, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"buckets": 7}, "model.buckets=7: must be even"),
        ({"buckets": 0}, "model.buckets=0: must be even"),
        ({"buckets": 8, "max_distance": 5}, "model.max_distance=5: must be at least 6"),
        ({"buckets": None, "max_distance": 1}, "model.max_distance=1: must be at least 2"),
        (
            {"content_to_position": False, "position_to_content": False},
            "model.position_to_content=false: scores need a term with distances",
        ),
        ({"position_offset": 2}, "model.position_offset=2: belongs to learned positions"),
    ],
)
def test_refuses_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(max_seq_len=32, positions=Positions.disentangled, **fields)


def test_the_setting_by_which_scores_get_a_bias_is_named():
    assert small_encoder(**DEBERTA).config.score_bias == "model.positions=disentangled"
    assert small_encoder().config.score_bias is None


def hidden(model, batch):
    return model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))


def test_a_long_neighbour_changes_nothing_but_the_rows_that_are_read():
    """Short sequences read a part of the table of distances, and beside a long one all of it."""
    model, batch = small_encoder(**DEBERTA, init_std=0.5), ragged_batch([4, 30])
    alone = hidden(model, ragged_batch([4]))
    alone.square().sum().backward()
    assert model.distance_embedding.weight.grad.any(dim=1).tolist() == [False] * 5 + [True] * 7 + [False] * 4
    short = hidden(model, batch)[:4]
    torch.testing.assert_close(short[: len(alone)], hidden(model, ragged_batch([4])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"shared_projections": False, "content_to_position": False}])
@pytest.mark.parametrize("length", [3, 32])
def test_flops_are_those_that_torch_counts(length, fields):
    """But for what the table of distances passes through, which is the same for any number of tokens."""
    model = small_encoder(attend=eager, **DEBERTA, **fields)
    batch = ragged_batch([length])
    with FlopCounterMode(display=False) as counter:
        (model.head_input(hidden(model, batch)) @ model.head_weight().T).sum().backward()
    rows = len(model.config.distances.reached(length))
    of_table = 6 * rows * 24 * (24 if fields else 3 * 24) * model.config.layers
    assert model.flops_per_token(length) * length + of_table == counter.get_total_flops()


def test_the_table_of_distances_and_its_norm_lie_before_the_blocks():
    model = small_encoder(**DEBERTA)
    depths = {name: model.depth(name) for name, _ in model.named_parameters() if "distance" in name}
    assert set(depths) == {
        "distance_embedding.weight",
        *(f"distance_embedding_norm.{part}" for part in ("weight", "bias")),
    }
    assert set(depths.values()) == {0}


def test_vectors_of_distances_are_dropped_in_training_only():
    model, batch = small_encoder(**DEBERTA, dropout=0.5), ragged_batch([9, 4])
    exact = hidden(small_encoder(**DEBERTA), batch)
    torch.testing.assert_close(hidden(model.eval(), batch), exact)
    attention = model.train().blocks[0].attention
    vectors = DistanceVectors.of(torch.ones(16, 24), model.config.distances, 9)
    q = k = torch.ones(5, 4, 6)
    assert not torch.equal(*(attention.bias(q, k, vectors).of_queries for _ in range(2)))
