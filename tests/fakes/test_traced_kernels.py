"""The operations that the roofline counts are those of the model's own formula."""

import pytest
from fake_kernels import counted_flops
from forks import on_fake_cuda


@pytest.mark.parametrize("name", ["gpt2_124m", "modernbert_base"])
def test_operations_of_a_token(name):
    found = on_fake_cuda(counted_flops, name, 2)
    layers, width, seq_len = {"gpt2_124m": (12, 768, 1024), "modernbert_base": (22, 768, 1024)}[name]
    if name == "gpt2_124m":  # a causal kernel computes half of the scores; 4 products forward and 10 backward
        scores = 12 * layers * width * seq_len
        assert found["attention"] == pytest.approx(scores / 2 * 14 / 12)
    else:  # every third layer sees all keys, from the first; others 64 and itself on both sides, as the kernel counts
        seen = 8 * seq_len + 14 * 2 * 65
        scores = 12 * width * (8 * seq_len + 14 * (2 * 65 - 1))
        assert found["attention"] == pytest.approx(14 * width * seen)
    assert found["product"] == pytest.approx(found["formula"] - scores, rel=1e-3)
