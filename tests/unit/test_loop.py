"""The loop: between log steps it reads nothing back from the device, whatever the step is made of."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ALONE

from pretrain.data.base import IGNORED, Batch
from pretrain.loop import TrainConfig, TrainState, train
from pretrain.metrics import StepMeter
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim import AdamWConfig, MuonConfig
from pretrain.precision import BF16, FP16, FP32
from pretrain.strategy.compilation import CompileConfig
from pretrain.strategy.ddp import DDPConfig

SEQUENCES, LENGTH, STEPS = 2, 8, 3


class ReadBackError(Exception):
    """A value went from a tensor to the host; on a GPU that waits for all work before it."""


class NoReads(TorchDispatchMode):
    """`.item()`, `bool()`, `float()` and `if tensor` all end in one operator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise ReadBackError
        return func(*args, **(kwargs or {}))


def micro_batch(seed: int) -> Batch:
    tokens = torch.randint(31, (SEQUENCES * LENGTH,), generator=torch.Generator().manual_seed(seed))
    targets = tokens.roll(-1)
    targets[LENGTH - 1 :: LENGTH] = IGNORED
    return Batch(
        tokens=tokens,
        positions=torch.arange(LENGTH).repeat(SEQUENCES),
        offsets=torch.arange(SEQUENCES + 1, dtype=torch.int32) * LENGTH,
        max_len=LENGTH,
        targets=targets,
        num_targets=SEQUENCES * (LENGTH - 1),
    )


def run(optim, precision) -> tuple[TrainState, list[str]]:
    """Take three steps of two micro-batches under `NoReads`; return the state and what the hooks were asked for."""
    with torch.device("meta"):
        model = DecoderConfig(max_seq_len=LENGTH, width=16, layers=2, heads=2).build(vocab_size=31, attend=sdpa)
        module = CausalLMConfig().build(model)
    module.to_empty(device="cpu")
    model.init_weights(1)
    strategy = DDPConfig().build(world=ALONE, precision=precision, compilation=CompileConfig())
    wrapped = strategy.setup(module, optim.build)
    asked = []
    hooks = SimpleNamespace(
        meter=StepMeter(ALONE.device),
        log_every=1000,
        evaluate_every=0,
        save_every=1000,
        log=lambda state: asked.append(f"log {state.step}"),
        save=lambda state, required: asked.append(f"save {state.step} {required}"),
    )
    steps = [[micro_batch(2 * step), micro_batch(2 * step + 1)] for step in range(STEPS)]
    state = TrainState()
    with NoReads():
        train(
            wrapped,
            strategy,
            steps,
            lambda step: 1.0,
            state,
            cfg=TrainConfig(steps=STEPS),
            seed=1,
            world=ALONE,
            hooks=hooks,
            stop=SimpleNamespace(received=False),
        )
    return state, asked


@pytest.mark.parametrize("precision", [FP32(), BF16(), FP16()])
def test_nothing_is_read_back_between_log_steps(precision):
    state, asked = run(AdamWConfig(), precision)
    assert state.tokens == STEPS * 2 * SEQUENCES * (LENGTH - 1)
    assert asked == [f"log {STEPS}", f"save {STEPS} True"], "the last save must not fail in silence"


def test_muon_reads_the_norm_as_its_documentation_says():
    with pytest.raises(ReadBackError):
        run(MuonConfig(), FP32())
