"""Float8: which layers are converted, laws of its scales, and refusals. Products are emulated, for no CPU has them."""

import pytest
import torch
from small_models import ragged_batch, small_decoder

from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout
from pretrain.models.layers import Fused
from pretrain.strategy.float8 import FP8
from pretrain.strategy.zero import ZeROConfig

EMULATED = FP8(emulate=True, min_width=1)
WIDE = {"width": 64, "heads": 2}


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("llama_8b", {"attention.qkv", "attention.out", "mlp.up", "mlp.down"}),
        ("llama_1b", {"mlp.up"}),
        ("gpt2_1558m", {"attention.qkv", "mlp.up"}),
        ("gpt2_124m", set()),
        ("bert_large", set()),
    ],
)
def test_layers_that_gain_by_the_measurements_of_torchao_are_converted(experiment, expected):
    config = compose([f"experiment={experiment}"]).model
    with torch.device("meta"):
        block = config.build(vocab_size=16, attend=sdpa).blocks[-1]
    linear = {name: layer for name, layer in block.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {name for name, layer in linear.items() if FP8().gains(layer)} == expected


def test_layers_of_unaligned_widths_and_with_adapters_are_left_alone():
    class Adapted(torch.nn.Linear):
        pass

    with torch.device("meta"):
        assert FP8().gains(torch.nn.Linear(4096, 4096)) and FP8().gains(Fused(4096, {"up": 4096}, bias=True))
        for other in (torch.nn.Linear(4096, 4104), torch.nn.Linear(4104, 4096), Adapted(4096, 4096)):
            assert not FP8().gains(other)


def converted(**fields):
    model = small_decoder(**WIDE, **fields)
    names = [name for name, _ in model.named_parameters()]
    held = dict(model.named_parameters())
    EMULATED.convert(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    return model


def results(model, groups):
    """Return hidden states and gradients of documents that come in groups."""
    model.zero_grad()
    documents = ragged_batch([length for group in groups for length in group])
    hidden, at = [], 0
    for group in groups:
        batch = ragged_batch(group)
        tokens = documents.tokens[at : at + len(batch.tokens)]
        hidden.append(model(tokens, batch.positions, Layout.of(batch.offsets, batch.max_len, group)))
        hidden[-1].square().sum().backward()
        at += len(tokens)
    return torch.cat(hidden).detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_how_a_batch_is_cut_changes_rounding_alone():
    lengths, model = [17, 5, 31, 9, 1, 12, 30, 7], converted()
    whole, gradients = results(model, [lengths])
    for size in (4, 2):
        cut, others = results(model, [lengths[at : at + size] for at in range(0, 8, size)])
        torch.testing.assert_close(cut, whole, rtol=0, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


def test_products_are_rounded_to_float8_while_training_and_not_in_evaluation():
    x, layer = torch.randn(7, 64), converted().blocks[0].mlp.up
    exact = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer.eval()(x), exact)
    error = (layer.train()(x) - exact).norm() / exact.norm()
    assert 0.01 < error < 0.06  # e4m3 has 3 bits of mantissa: up to 1/16 of each factor


def test_what_cannot_compute_in_float8_is_refused():
    on_cpu = {"device_type": "cpu", "compiles": False}
    EMULATED.check_machine(**on_cpu)
    with pytest.raises(ConfigError, match=r"precision=fp8: needs a GPU of compute capability 8\.9"):
        FP8().check_machine(**on_cpu)
    with pytest.raises(ConfigError, match=r"precision\.emulate=true: emulation runs eagerly; set compile=none"):
        EMULATED.check_machine(device_type="cpu", compiles=True)
    with pytest.raises(ConfigError, match=r"precision=fp8: float8 is for strategy=ddp and fsdp2"):
        ZeROConfig().check_machine(ranks=1, device_type="cuda", precision=FP8())
    with pytest.raises(ConfigError, match=r"precision=fp8: none of the 8 linear layers of the blocks is large enough"):
        FP8(emulate=True).convert(small_decoder(**WIDE))
    with pytest.raises(ConfigError, match=r"precision\.min_width=0: at least 1"):
        FP8(min_width=0)
