"""A few optimizer steps of a tiny decoder through the real loop, on ragged batches, for any device and precision."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from pretrain.data.batch import IGNORED, Batch
from pretrain.distributed.world import World
from pretrain.init_from import InitialWeights
from pretrain.models.base import Attend
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.base import OptimConfig
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.precision import Precision
from pretrain.train.loop import TrainConfig, TrainState, train
from pretrain.train.metrics import StepMeter

LENGTHS, STEPS = [3, 8, 1, 5], 3
TARGETS = sum(LENGTHS) - len(LENGTHS)  # of a micro-batch


def micro_batch(seed: int) -> Batch:
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(31, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))
    targets = tokens.roll(-1)
    targets[lengths.cumsum(0) - 1] = IGNORED
    return Batch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in LENGTHS]),
        offsets=F.pad(lengths.cumsum(0), (1, 0)).int(),
        max_len=max(LENGTHS),
        targets=targets,
        num_targets=TARGETS,
        lengths=LENGTHS,
    )


def take_steps(
    world: World,
    optim: OptimConfig,
    precision: Precision,
    attend: Attend,
    *,
    pin: bool = False,
    during: AbstractContextManager[None] | None = None,
) -> tuple[TrainState, list[str]]:
    """Take STEPS steps of two micro-batches, within a context; return the state and what was asked of the hooks."""
    with torch.device("meta"):
        model = DecoderConfig(max_seq_len=max(LENGTHS), width=16, layers=2, heads=2).build(vocab_size=31, attend=attend)
        module = CausalLMConfig().build(model)
    initial = InitialWeights(module, 1)
    strategy = DDPConfig().build(world=world, precision=precision, compilation=CompileConfig())
    wrapped = strategy.setup(module, optim.build)
    strategy.load_fragments(initial)
    asked: list[str] = []
    hooks = SimpleNamespace(
        meter=StepMeter(world.device),
        log_every=1000,
        evaluate_every=0,
        is_due=lambda state: False,
        end_early=lambda: False,
        log=lambda state: asked.append(f"log {state.step}"),
        save=lambda state, required: asked.append(f"save {state.step} {required}"),
        settle=lambda: None,
    )
    steps = [[micro_batch(2 * step), micro_batch(2 * step + 1)] for step in range(STEPS)]
    if pin:
        steps = [[batch.pin_memory() for batch in batches] for batches in steps]
    state = TrainState()
    with during or nullcontext():
        train(
            wrapped,
            strategy,
            steps,
            lambda step: 1.0,
            state,
            cfg=TrainConfig(steps=STEPS),
            seed=1,
            world=world,
            hooks=hooks,
            stop=SimpleNamespace(received=False),
        )
    return state, asked
