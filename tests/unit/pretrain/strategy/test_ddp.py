"""The ddp strategy in one process: accumulation, clipping, loss scaling, skipped updates, recomputation."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from toys import ALONE, ToyObjective, take_step, toy_batch, toy_strategy

from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.models.base import named_tensors
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.compile import CompileBlock, CompileModel
from pretrain.strategy.ddp import DDPConfig, accelerator
from pretrain.strategy.precision import BF16, FP16, FP32


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_step_equals_torch_by_hand():
    module, strategy = toy_strategy(optim=AdamWConfig(lr=1e-2, weight_decay=0.0))
    torch.manual_seed(3)
    reference = ToyObjective()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.5e-2, betas=(0.9, 0.95), weight_decay=0.0)
    batch = toy_batch(1)
    (reference(batch).total / 11).backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in reference.parameters()))
    for parameter in reference.parameters():
        parameter.grad *= 0.1 / norm
    optimizer.step()

    with strategy.micro_step(last=True):
        strategy.backward(module(batch).total / 11)
    measured = strategy.step(0.5, 0.1).norm
    assert measured.item() == pytest.approx(norm, rel=1e-6)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_the_environment_of_accelerate_does_not_change_gradients(monkeypatch):
    settings = {"GRADIENT_ACCUMULATION_STEPS": "4", "MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "EAGER"}
    for name, value in settings.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    made = accelerator(DDPConfig(bucket_mb=3), ALONE)
    assert (made.gradient_accumulation_steps, made.mixed_precision) == (1, "no")
    assert made.state.dynamo_plugin.backend.value == "NO"
    assert made.ddp_handler.bucket_cap_mb == 3


def test_accumulation_adds_gradients_and_a_step_clears_them():
    module, strategy = toy_strategy()
    for number in (1, 2):
        with strategy.micro_step(last=number == 2):
            strategy.backward(module(toy_batch(number)).total / 22)
    gradient = module.model.blocks[0].weight.grad.clone()
    strategy.step(1.0, None)
    assert all(parameter.grad is None for parameter in module.parameters())
    torch.manual_seed(3)
    reference = ToyObjective()
    ((reference(toy_batch(1)).total + reference(toy_batch(2)).total) / 22).backward()
    torch.testing.assert_close(gradient, reference.model.blocks[0].weight.grad)


@pytest.mark.parametrize("optim", [AdamWConfig(lr=1e-2), MuonConfig(lr=1e-2)])
@pytest.mark.parametrize("precision", [FP32(), BF16(), FP16(initial_scale=1024)])
def test_a_step_with_a_broken_gradient_changes_nothing(precision, optim):
    module, strategy = toy_strategy(precision, optim)
    take_step(module, strategy, 1)
    before, moments = weights(module), strategy.optimizer.state_dict()["state"]
    moments = {key: {kind: value.clone() for kind, value in state.items()} for key, state in moments.items()}
    norm = take_step(module, strategy, 2, factor=float("nan")).norm
    assert not norm.isfinite()
    assert all(torch.equal(before[name], value) for name, value in weights(module).items())
    after = strategy.optimizer.state_dict()["state"]
    assert all(torch.equal(moments[key][kind], after[key][kind]) for key in moments for kind in moments[key])
    assert take_step(module, strategy, 3).norm.isfinite()
    assert any(not torch.equal(before[name], value) for name, value in weights(module).items())


def test_fp16_halves_its_scale_at_each_overflow_until_gradients_are_finite():
    module, strategy = toy_strategy(FP16(initial_scale=2.0**120))
    skipped = 0
    while not take_step(module, strategy, 1).norm.isfinite():
        skipped += 1
        assert skipped < 150, "below 2^-30 nothing overflows"
    assert skipped > 0
    assert strategy.state()["scale"] == 2.0 ** (120 - skipped)


def test_fp16_doubles_its_scale_after_good_steps():
    module, strategy = toy_strategy(FP16(initial_scale=4.0, growth_every=3))
    scales = []
    for seed in range(4):
        take_step(module, strategy, seed)
        scales.append(strategy.state()["scale"])
    assert scales == [4.0, 4.0, 8.0, 8.0]


def test_fp16_gradients_are_unscaled_before_they_are_clipped_and_measured():
    norms = []
    for precision in (FP32(), FP16(initial_scale=4096.0)):
        module, strategy = toy_strategy(precision)
        norms.append(take_step(module, strategy, 1).norm.item())
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


def test_the_scale_survives_a_resume():
    _, strategy = toy_strategy(FP16(initial_scale=8.0))
    _, other = toy_strategy(FP16(initial_scale=1024.0))
    other.load_state(strategy.state())
    assert other.state()["scale"] == 8.0


@pytest.mark.parametrize("precision", [FP32(), BF16(), FP16()])
def test_the_forward_pass_runs_in_the_configured_precision(precision):
    module, _ = toy_strategy(precision)
    seen = []
    module.model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output.dtype))
    module(toy_batch(1))
    assert seen == [precision.dtype]
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_each_tensor_is_saved_with_its_moments_by_the_rank_that_has_least_so_far():
    module, strategy = toy_strategy()
    take_step(module, strategy, 1)
    sizes = [(name, tensor.numel()) for name, tensor in named_tensors(module)]
    saved = [0, 0]
    for rank in (0, 1):
        strategy.world = World(rank, 2, ALONE.device)
        names = {}
        for fragment in strategy.fragments():
            names.setdefault(fragment.name, set()).add(fragment.kind)
        saved[rank] = names
    owners, load = {}, [0, 0]
    for name, size in sizes:
        owners[name] = 0 if load[0] <= load[1] else 1
        load[owners[name]] += size
    assert [sorted(names) for names in saved] == [sorted(n for n in owners if owners[n] == rank) for rank in (0, 1)]
    moments = {"weight", "exp_avg", "exp_avg_sq", "step"}
    assert all(kinds == moments for names in saved for name, kinds in names.items() if name != "model.scale")


def test_gradients_are_averaged_over_ranks_in_the_last_micro_batch_alone():
    _, strategy = toy_strategy()
    apart = []
    strategy.accelerator = SimpleNamespace(no_sync=lambda module: apart.append(module) or nullcontext())
    for number in range(3):
        with strategy.micro_step(last=number == 2):
            assert apart == [strategy.wrapped] * min(number + 1, 2)


def test_the_memory_is_that_of_whole_replicas():
    assert DDPConfig().memory(1200, ranks=4, precision=BF16()) == (4 * 1200, 4 * 1200, 8 * 1200)


@pytest.mark.parametrize("recompute", [Recompute.none, Recompute.full])
@pytest.mark.parametrize("compilation", [CompileBlock(), CompileModel()])
def test_what_is_to_be_compiled_is_compiled(compilation, recompute):
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    reset()
    counters.clear()
    torch.manual_seed(3)
    module = ToyObjective()
    names = list(module.state_dict())
    cfg = DDPConfig(activation_checkpointing=recompute)
    strategy = cfg.build(world=ALONE, precision=FP32(), compilation=compilation)
    strategy.setup(module, AdamWConfig().build)
    strategy.backward(module(toy_batch(5)).total)
    assert counters["stats"]["unique_graphs"] > 0
    assert list(module.state_dict()) == names


def test_the_scale_of_fp16_stops_at_its_floor_and_an_overflow_there_is_known():
    module, strategy = toy_strategy(FP16(initial_scale=16.0, min_scale=3.0))
    found = []
    for factor in (math.nan, 1.0, math.nan, math.nan, math.nan):
        take_step(module, strategy, 1, factor)
        found.append((strategy.state()["scale"], strategy.scale_exhausted))
    assert found == [(8.0, False), (8.0, False), (4.0, False), (3.0, False), (3.0, True)]
    with pytest.raises(ConfigError, match="above 0 and at most precision"):
        FP16(initial_scale=16.0, min_scale=32.0)
    assert not toy_strategy()[1].scale_exhausted, "fp32 has no scale"
