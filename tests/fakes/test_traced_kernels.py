"""The operations that the roofline counts are those of the model's own formula."""

import pytest
from fake_kernels import counted_flops
from forks import on_fake_cuda

from bench.traced_kernels import Kernel, Kind, fused


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


def test_passes_that_share_memory_are_joined_up_to_the_next_product():
    cast = _kernel(Kind.memory, reads=[1], writes=[2])
    square, add = _kernel(Kind.memory, reads=[3], writes=[4]), _kernel(Kind.memory, reads=[4], writes=[5])
    product = _kernel(Kind.product, reads=[2, 5], writes=[6])
    found = fused([square, cast, add, product, square], lambda storage, number: storage != 4 or number > 3)
    assert [(set(each.reads), set(each.writes)) for each in found] == [
        ({1}, {2}),
        ({3}, {5}),  # what lies between is never written
        ({2, 5}, {6}),
        ({3}, {4}),
    ]


def _kernel(kind: Kind, *, reads: list[int], writes: list[int]) -> Kernel:
    return Kernel(kind, "any", "forward", 0, 0.0, dict.fromkeys(reads, 8), dict.fromkeys(writes, 8))
