"""Which parts of a model are given to torch.compile, and how. That it compiles them is `test_ddp`'s."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from toys import ToyModel

from pretrain.errors import ConfigError
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.cross_entropy import chunk_loss, linear_cross_entropy
from pretrain.strategy.compile import CompileBlock, CompileConfig, CompileModel, CompileNone, fused


@pytest.mark.parametrize(("cfg", "scope"), [(CompileNone, "none"), (CompileBlock, "block"), (CompileModel, "model")])
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_each_choice_compiles_its_parts_in_its_mode(monkeypatch, cfg, scope, mode):
    model, asked = ToyModel(), []
    parts = {"none": [], "block": [block.forward for block in model.blocks], "model": [model.forward]}
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append((forward, options)) or forward)
    cfg(mode=mode).apply(model)
    assert asked == [(part, {"mode": mode}) for part in parts[scope]]


def test_a_mode_that_torch_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"compile\.mode=fast: choose one of default, reduce-overhead"):
        CompileConfig(mode="fast")


@pytest.mark.parametrize(
    ("cfg", "device", "compiles"),
    [(CompileBlock, "cuda", True), (CompileBlock, "cpu", False), (CompileNone, "cuda", False)],
)
def test_the_loss_is_fused_where_the_run_compiles_on_a_gpu(monkeypatch, cfg, device, compiles):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    objective = CausalLMConfig().build(ToyModel())
    cfg().apply_to_loss(objective, torch.device(device))
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
