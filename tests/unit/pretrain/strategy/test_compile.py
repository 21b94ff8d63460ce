"""What is compiled, where, and what is refused. How many graphs that makes is `test_compiled_graphs`'s."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from toys import ToyModel

from pretrain.errors import ConfigError
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.cross_entropy import chunk_loss, linear_cross_entropy
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.compile import CompileAuto, CompileBlock, CompileConfig, CompileModel, CompileNone, Scope, fused
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.zero import ZeROConfig


@pytest.mark.parametrize(("scope", "parts"), [(Scope.none, 0), (Scope.block, 1), (Scope.model, 1)])
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_each_choice_compiles_its_parts_in_its_mode(monkeypatch, scope, parts, mode):
    model, asked = ToyModel(), []
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append(options) or forward)
    CompileAuto(mode=mode).apply(model, scope)
    assert asked == [{"mode": mode, "dynamic": True, "fullgraph": False}] * parts


@pytest.mark.parametrize(
    ("cfg", "device_type", "strategy", "scope", "said"),
    [
        (CompileAuto(), "cuda", DDPConfig(), Scope.block, "each block by itself, in the first steps"),
        (CompileAuto(), "cuda", FSDP2Config(), Scope.block, "each block by itself, in the first steps"),
        (CompileAuto(), "cuda", ZeROConfig(stage=3), Scope.none, "nothing (compile=auto, cuda, strategy=zero3)"),
        (CompileAuto(), "cpu", DDPConfig(), Scope.none, "nothing (compile=auto, cpu, strategy=ddp)"),
        (CompileNone(), "cuda", DDPConfig(), Scope.none, "nothing"),
        (CompileBlock(), "cpu", DDPConfig(), Scope.block, "each block by itself, in the first steps"),
        (
            CompileModel(mode="max-autotune"),
            "cpu",
            DDPConfig(),
            Scope.model,
            "the model as a whole, in the first steps, max-autotune",
        ),
    ],
)
def test_auto_compiles_blocks_on_gpus_and_the_plan_says_so(cfg, device_type, strategy, scope, said):
    assert cfg.on(device_type, strategy) is scope
    assert cfg.described(device_type, strategy) == said


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
@pytest.mark.parametrize(
    ("strategy", "ragged", "reason"),
    [
        (DDPConfig(), "data.isolate_documents=true", "sizes differ with data.isolate_documents=true"),
        (FSDP2Config(), None, "strategy=fsdp2 moves them"),
    ],
)
def test_cuda_graphs_of_what_changes_size_or_moves_are_refused(mode, strategy, ragged, reason):
    settings = {"strategy": strategy, "ragged": ragged}
    with pytest.raises(ConfigError, match=rf"compile\.mode={mode}: .*{reason}; set compile\.mode=default"):
        CompileBlock(mode=mode).check_start(device_type="cuda", **settings)
    CompileBlock(mode="max-autotune-no-cudagraphs").check_start(device_type="cuda", **settings)
    CompileAuto(mode=mode).check_start(device_type="cpu", **settings)


def test_cuda_graphs_of_whole_replicas_and_even_batches_are_allowed():
    CompileBlock(mode="reduce-overhead").check_start(device_type="cuda", strategy=DDPConfig(), ragged=None)


def test_blocks_whose_weights_come_by_hooks_inside_are_refused():
    with pytest.raises(ConfigError, match=r"compile=block: strategy=zero3 gathers weights inside .*strategy=fsdp2"):
        CompileBlock().check_start(device_type="cuda", strategy=ZeROConfig(stage=3), ragged=None)
    CompileAuto().check_start(device_type="cuda", strategy=ZeROConfig(stage=3), ragged=None)


def test_recomputed_blocks_whose_attention_is_not_compiled_are_refused():
    recomputed, ragged = DDPConfig(activation_checkpointing=Recompute.full), "data.isolate_documents=true"
    with pytest.raises(ConfigError, match=r"strategy\.activation_checkpointing=full: .* or compile=none"):
        CompileBlock().check_start(device_type="cpu", strategy=recomputed, ragged=ragged)
    CompileBlock().check_start(device_type="cpu", strategy=recomputed, ragged=None)
    CompileBlock().check_start(device_type="cuda", strategy=recomputed, ragged=ragged)


@pytest.mark.parametrize(
    ("cfg", "device_type", "warned"),
    [
        (CompileBlock(), "cpu", "compile=block"),
        (CompileModel(), "cpu", "compile=model"),
        (CompileModel(), "cuda", None),
        (CompileAuto(), "cpu", None),
        (CompileNone(), "cpu", None),
    ],
)
def test_who_compiles_on_a_cpu_is_told_that_it_gains_little(cfg, device_type, warned, caplog):
    cfg.advise(device_type)
    expected = [f"{warned}: on a CPU the first steps wait for the compiler"] if warned else []
    assert [message.partition(",")[0] for message in caplog.messages] == expected


def test_a_mode_for_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"compile\.mode=max-autotune: nothing is compiled with compile=none; set"):
        CompileNone(mode="max-autotune")


def test_a_mode_that_torch_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"compile\.mode=fast: choose one of default, reduce-overhead"):
        CompileConfig(mode="fast")


@pytest.mark.parametrize(
    ("scope", "device", "compiles"),
    [(Scope.block, "cuda", True), (Scope.block, "cpu", False), (Scope.none, "cuda", False)],
)
def test_the_loss_is_fused_where_the_run_compiles_on_a_gpu(monkeypatch, scope, device, compiles):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    objective = CausalLMConfig().build(ToyModel())
    CompileConfig().apply_to_loss(objective, scope, torch.device(device))
    assert (objective.chunk_loss is not chunk_loss) == compiles


def test_one_graph_fuses_chunks_of_all_sizes_and_one_those_of_evaluation(monkeypatch):
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    arithmetic = fused(chunk_loss)
    for tokens in (8, 13):
        hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
        targets, bias = torch.randint(11, (tokens,)), torch.randn(11, requires_grad=True)
        options = {"num_targets": tokens, "bias": bias, "chunk_tokens": 8, "z_loss": 0.1, "label_smoothing": 0.2}
        found = []
        for each in (chunk_loss, arithmetic):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                total, *sums = linear_cross_entropy(hidden, weight, targets, **options, arithmetic=each)
                with torch.no_grad():
                    evaluated = linear_cross_entropy(hidden, weight, targets, **options, arithmetic=each)
            found.append([total, *sums, *torch.autograd.grad(total, (hidden, weight, bias)), *evaluated])
        torch.testing.assert_close(*found)
    assert graphs.frame_count == 2
