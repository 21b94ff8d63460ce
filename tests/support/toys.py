"""A tiny trainable module with uneven shapes, tied weights and a buffer, for tests of strategies and checkpoints."""

import torch
from torch import nn

from pretrain.data.batch import Batch
from pretrain.distributed.world import World
from pretrain.models.base import Model
from pretrain.objectives.base import Loss, Objective
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.base import Update
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.ddp import DDP, DDPConfig
from pretrain.strategy.precision import FP32

ALONE = World.alone()


class ToyModel(Model):
    """An embedding, one block, and the embedding again as the head: 7 x 5, 5 x 5 and 5 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.blocks = nn.ModuleList([nn.Linear(5, 5)])
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(3))

    def forward(self, tokens, positions, layout):
        return self.blocks[0](self.embedding(tokens))


class ToyObjective(Objective):
    """Cross-entropy of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ToyModel()

    def forward(self, batch):
        logits = self.model.head(self.model(batch.tokens, batch.positions, None))
        total = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        return Loss(total, total.detach(), (logits.argmax(1) == batch.targets).sum())


def toy_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, (11,), generator=generator)
    return Batch(
        tokens=tokens,
        positions=torch.arange(11),
        offsets=torch.tensor([0, 11], dtype=torch.int32),
        max_len=11,
        targets=tokens.roll(-1),
        num_targets=11,
    )


def toy_strategy(precision=None, optim=None) -> tuple[ToyObjective, DDP]:
    torch.manual_seed(3)
    module = ToyObjective()
    strategy = DDPConfig().build(world=ALONE, precision=precision or FP32(), compilation=CompileConfig())
    strategy.setup(module, (optim or AdamWConfig(lr=1e-2)).build)
    return module, strategy


def take_step(
    module: ToyObjective, strategy: DDP, seed: int, factor: float = 1.0, clip_norm: float | None = 1.0
) -> Update:
    batch = toy_batch(seed)
    with strategy.micro_step(last=True):
        strategy.backward(module(batch).total * factor / batch.num_targets)
    return strategy.step(1.0, clip_norm)


def state_of(module: ToyObjective, strategy: DDP) -> dict[object, torch.Tensor]:
    """Return weights, buffers and moments, not copied."""
    moments = {
        (name, kind): value
        for name, parameter in module.named_parameters()
        for kind, value in strategy.optimizer.state[parameter].items()
    }
    return {**module.state_dict(), **moments}


def assert_same(first: dict[object, torch.Tensor], second: dict[object, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
