"""Strategies over compiled blocks take the steps of plain torch, whatever blocks compute again, and share graphs."""

import math
from functools import partial

import pytest
import torch
from equivalence import SEQUENCES, build, reference, start, strategies, train
from ranks import on_ranks
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.models.attention.flex import document_mask
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.compile import CompileBlock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 3


def whole(q, k, v, layout, *, causal, window=None, dropout=0.0, scale=None, bias=None):
    """Attend over all rows of the stream under a mask of documents: unlike sdpa on a CPU, in the block's own graph."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    seen = document_mask(layout, len(q), len(k), causal, window)(
        None, None, *torch.meshgrid(torch.arange(len(q)), torch.arange(len(k)), indexing="ij")
    )
    scores = torch.einsum("qhe,khe->hqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1).to(v.dtype)
    return torch.einsum("hqk,khe->qhe", weights, v)


def check_compiled(world, names, expected):
    for name in names:
        for recompute in (Recompute.none, Recompute.selective):
            where = f"{name}, {recompute}"
            torch._dynamo.reset()
            graphs = CompileCounterWithBackend("aot_eager")  # without the usual backend's C++, which takes minutes
            compiler, torch.compile = torch.compile, partial(torch.compile, backend=graphs)
            cfg = strategies(world.size)[name]
            cfg.activation_checkpointing = recompute
            _, wrapped, strategy = start(world, cfg, make=partial(build, whole), compilation=CompileBlock())
            torch.compile = compiler
            micro = SEQUENCES // world.size // 2
            first = train(world, wrapped, strategy, range(1), micro)
            made = graphs.frame_count
            later = train(world, wrapped, strategy, range(1, STEPS), micro)
            assert first.losses + later.losses == pytest.approx(expected.losses, abs=1e-5), where
            assert first.norms + later.norms == pytest.approx(expected.norms, rel=1e-4), where
            assert 0 < graphs.frame_count == made <= 2, where  # tracing may begin anew once: numbers became tensors


@pytest.mark.parametrize(("ranks", "names"), [(1, ["zero1"]), (2, ["ddp", "zero1"]), (2, ["zero2", "fsdp2", "hsdp"])])
def test_compiled_blocks_take_the_steps_of_plain_torch(ranks, names):
    on_ranks(ranks, check_compiled, names, reference(STEPS)[0])
