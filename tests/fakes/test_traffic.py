"""What FSDP2 and HSDP send in a step of 64 fake ranks: each collective, its dtype and its elements, by a formula.

Two micro-batches, two blocks of real width. The group is torch's `fake`, whose collectives do nothing.
"""

import math
from collections import Counter

import pytest
from fake_steps import Operator, steps
from forks import on_fake_cuda

RANKS, MICRO_BATCHES = 64, 2
VARIANTS = {
    "default": [],
    "whole gradients": ["strategy.accumulate_whole_gradients=true"],
    "kept": ["strategy.reshard_after_forward=false"],
    "kept, whole": ["strategy.reshard_after_forward=false", "strategy.accumulate_whole_gradients=true"],
    "bf16": ["strategy.reduce_dtype=bf16"],
    "hsdp": ["strategy.shard_ranks=8"],
    "hsdp, whole": ["strategy.shard_ranks=8", "strategy.accumulate_whole_gradients=true"],
}


@pytest.mark.parametrize("name", ["gpt2_124m", "llama_8b"])
def test_collectives(name):
    fixed = ["model.layers=2", "compile=none", "strategy=fsdp2"]
    runs = [(name, [*fixed, *overrides]) for overrides in VARIANTS.values()]
    results = on_fake_cuda(steps, runs, ranks=RANKS, micro_batches=MICRO_BATCHES)
    for variant, result in zip(VARIANTS, results, strict=True):
        operators = [Operator(*row) for row in result["operators"]]
        assert sent(operators) == formula(variant, result["shapes"], result["groups"]), f"{name}, {variant}"


def sent(operators: list[Operator]) -> dict[str, tuple[int, str, int]]:
    """Return for each kind of collective how many there were, their dtype, and the elements of their largest tensors.

    Those are what is gathered, what is reduced before it is scattered, and what replicas add up.
    """
    kinds = {"_allgather_base_": "gather", "_reduce_scatter_base_": "scatter", "allreduce_": "reduce"}
    calls, elements, dtypes = Counter(), Counter(), {}
    for each in operators:
        if each.name.startswith("c10d"):
            kind = "norm" if each.phase == "step" else kinds[each.base]
            calls[kind] += 1
            elements[kind] += max(one[3] for one in each.inputs)
            dtypes[kind] = each.inputs[0][1]
    return {kind: (calls[kind], dtypes[kind], elements[kind]) for kind in calls}


def formula(variant: str, shapes: dict[str, list[int]], groups: int) -> dict[str, tuple[int, str, int]]:
    """Return the same, by arithmetic. A group is what FSDP2 gathers at a time: a block, or something outside of blocks.

    Rows of a tensor are padded to a multiple of the ranks that share it. All weights are gathered once in the forward
    pass of each micro-batch, those of blocks, which are freed after it, once more in the backward pass; kept weights
    once a step. Gradients are reduced and scattered in each micro-batch, whole ones in the last; replicas add up their
    parts in the last. The norm is one sum of as many numbers as a replica has ranks.
    """
    shards = 8 if "hsdp" in variant else RANKS
    in_blocks = {name for name in shapes if ".blocks." in name}
    blocks = len({name.split(".")[2] for name in in_blocks})
    assert groups > blocks == 2

    def padded(names: set[str]) -> int:
        chosen = [shapes[name] for name in names]
        return sum(-(-shape[0] // shards) * shards * math.prod(shape[1:]) for shape in chosen)

    inner, outer = padded(in_blocks), padded(shapes.keys() - in_blocks)
    passes = 1 if "kept" in variant else 2 * MICRO_BATCHES
    outer_passes = 1 if "kept" in variant else MICRO_BATCHES
    reductions = 1 if "whole" in variant else MICRO_BATCHES
    dtype = "bfloat16" if "bf16" in variant else "float32"
    found = {
        "gather": (
            passes * blocks + outer_passes * (groups - blocks),
            "bfloat16",
            passes * inner + outer_passes * outer,
        ),
        "scatter": (reductions * groups, dtype, reductions * (inner + outer)),
        "norm": (1, "float64", shards),
    }
    if shards < RANKS:
        found["reduce"] = (groups, dtype, (inner + outer) // shards)
    return found
