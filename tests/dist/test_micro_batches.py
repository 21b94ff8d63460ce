"""A micro-batch that is tried before a run leaves no trace of it, under any strategy, and ranks agree on its size."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from equivalence import OPTIM, SEQUENCES, build, start, strategies, train
from ranks import on_ranks
from storages import storages

from pretrain.data.batch import Batch
from pretrain.errors import ResourceError
from pretrain.models.attention.sdpa import SdpaConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.strategy.compile import CompileNone
from pretrain.strategy.precision import FP32
from pretrain.train.micro_batches import Passes

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too


def passes(world, cfg, densest=lambda size: Batch.of(CausalLMConfig().densest(size, 13))):
    parameters = sum(parameter.numel() for parameter in build().parameters())
    return Passes(
        build=lambda attend: build(),
        densest=densest,
        memory=cfg.memory(parameters, ranks=world.size, precision=FP32()),
        strategy=cfg,
        precision=FP32(),
        compilation=CompileNone(),
        attention=SdpaConfig(),
        make_optimizer=OPTIM.build,
        world=world,
    )


class OutOfMemory(torch.autograd.Function):
    """Passes a tensor on, and has no memory for its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError


def build_too_large(attend=None):
    """Return a module whose backward pass runs out of memory on the way, when weights are gathered."""
    module = build()
    block = module.model.blocks[1]
    forward = block.forward
    block.forward = lambda x, *others, **options: forward(OutOfMemory.apply(x), *others, **options)
    return module


def check_trace(world, names):
    for name in names:
        cfg = strategies(world.size)[name]
        _, wrapped, strategy = start(world, cfg)
        expected = train(world, wrapped, strategy, range(3), SEQUENCES // world.size)
        del wrapped, strategy
        random = torch.get_rng_state()
        before = storages()
        assert not replace(passes(world, cfg), build=build_too_large).fit(6, passes=2), name
        assert passes(world, cfg).fit(6, passes=2), name
        left = sum(size for at, size in storages().items() if before.get(at) != size)
        assert left < 0.1 * sum(passes(world, cfg).memory), (name, left)
        assert torch.equal(torch.get_rng_state(), random), name
        _, wrapped, strategy = start(world, cfg)
        found = train(world, wrapped, strategy, range(3), SEQUENCES // world.size)
        assert (found.losses, found.norms) == (expected.losses, expected.norms), name


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["ddp", "zero2", "zero3", "fsdp2"], id="some"),
        pytest.param(list(strategies(2)), id="all", marks=pytest.mark.slow),
    ],
)
def test_a_trial_leaves_no_trace(names):
    on_ranks(2, check_trace, names)


class Told(Passes):
    """Stands for ranks of which some run out of memory; nothing runs on them: gloo would wait where NCCL goes on."""

    short: ClassVar[set[int]]  # ranks

    def _fit(self, sequences, passes):
        return sequences <= 2 or self.world.rank not in self.short


def check_agreement(world):
    told = Told(**vars(passes(world, strategies(world.size)["ddp"])))
    Told.short = {0, 1}
    assert [told.fit(size, passes=1) for size in (4, 2)] == [False, True]
    Told.short = {1}
    with pytest.raises(
        ResourceError, match=r"4 sequences do not fit into the memory of rank 1, .* rank 0, which waits"
    ):
        told.fit(4, passes=1)


def test_ranks_take_the_same_way():
    on_ranks(2, check_agreement)
