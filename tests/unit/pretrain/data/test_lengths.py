"""Lengths in a few shares: what they keep of all lengths, and so of what models with and without windows compute."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_decoder, small_encoder

from pretrain.data.lengths import GROUPS, shares_of
from pretrain.train.summary import ModelSize


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=100))
def test_shares_keep_what_full_attention_costs(lengths):
    shares = shares_of(np.array(lengths, dtype=np.int32))
    assert len(shares) <= GROUPS and sum(share for _, share in shares) == pytest.approx(1)
    assert sum(length * share for length, share in shares) == pytest.approx(
        sum(length**2 for length in lengths) / sum(lengths)
    )
    assert [length for length, _ in shares] == sorted(length for length, _ in shares)


@pytest.mark.parametrize(
    ("build", "fields", "reach", "off"),
    [
        (small_decoder, {}, lambda length: length, 0.0),
        (small_decoder, {"window": 64}, lambda length: min(length, 64), 0.01),
        (small_encoder, {"window": 32}, lambda length: min(length, 63), 0.01),
    ],
)
def test_the_operations_of_ragged_documents_are_those_of_each_of_them(build, fields, reach, off):
    """Documents as those of the web: most are short, most tokens lie in long ones, cut at 512."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(3.5, 1.2, 2000).astype(np.int64) + 1, 512)
    model = build(layers=4, **fields)
    tokens, width = int(lengths.sum()), 24
    matrices = model.flops_per_token(1) - 12 * 4 * width  # a sequence of one token sees one key in each of 4 layers
    exact = tokens * matrices + sum(12 * 4 * width * int(length) * reach(int(length)) for length in lengths)
    module = SimpleNamespace(parameters=model.parameters, flops_per_token=model.flops_per_token)
    assert tokens * ModelSize.of(module, shares_of(lengths)).flops_per_token == pytest.approx(exact, rel=2e-3)
    by_mean = tokens * model.flops_per_token(float((lengths**2).sum() / tokens))
    assert by_mean / exact - 1 >= off - 1e-12, "one length for all of them counts too much"
