"""Dynamo compiles no more after the first batches, however long documents are, with the attention of a GPU.

What Inductor makes of a graph is not tested: it needs Triton and a driver.
"""

import pytest
from fake_steps import graphs_of_ragged_batches
from forks import on_fake_cuda

WARM_UP = 4  # batches: two evaluations and two steps
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "layers", "attention"),
    [
        pytest.param("modernbert_base", 4, "flash"),
        pytest.param("gpt2_124m", 2, "flash", marks=slow),
        pytest.param("bart_base", 2, "flash", marks=slow),
        pytest.param("gpt2_124m", 2, "flex", marks=slow),
        pytest.param("modernbert_base", 4, "flex", marks=slow),
        pytest.param("t5_small", 2, "auto", marks=slow),
    ],
)
def test_blocks_stay_compiled(name, layers, attention):
    overrides = ["compile=block", f"model.layers={layers}", f"attention={attention}"]
    found = on_fake_cuda(graphs_of_ragged_batches, name, *overrides)
    graphs, ran = zip(*found["seen"], strict=True)
    assert set(graphs[WARM_UP:]) == {graphs[WARM_UP]}, f"graphs after each batch: {graphs}"
    assert min(ran) >= found["blocks"], f"graphs that ran in each forward pass of {found['blocks']} blocks: {ran}"
