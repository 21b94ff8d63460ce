"""The attention backends on a CUDA device: flash in half precision, flex and sdpa in fp32 too; biases with the two."""

import pytest
import torch
from attention_laws import (
    BIASES,
    CASES,
    HEADS,
    MASKS,
    check_agrees_with_eager,
    check_isolates_sequences,
    layout,
    random_qkv,
    random_table,
)
from small_models import filled

from pretrain.errors import ConfigError
from pretrain.models.attention.auto import AutoConfig
from pretrain.models.attention.flash import FlashConfig
from pretrain.models.attention.flex import FlexConfig
from pretrain.models.attention.relative import RelativeBias
from pretrain.models.attention.sdpa import SdpaConfig
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Norm, Positions

pytestmark = pytest.mark.gpu
BF16 = {"device": "cuda", "dtype": torch.bfloat16, "tolerance": 1e-2}
FP32 = {"device": "cuda", "dtype": torch.float32, "tolerance": 1e-4}
NONEMPTY = [case for case in CASES if 0 not in case[0]]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_flash_agrees_with_eager(case, mask, heads):
    check_agrees_with_eager(FlashConfig().build(), case, mask, heads, **BF16)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_sdpa_agrees_with_eager(case, mask, heads):
    check_agrees_with_eager(SdpaConfig().build(), case, mask, heads, **FP32)


@pytest.mark.parametrize("heads", HEADS[:2])
@pytest.mark.parametrize("mask", [(True, None), (True, 3), (False, None)])
@pytest.mark.parametrize("case", NONEMPTY[2:4])
def test_flex_agrees_with_eager(case, mask, heads):
    check_agrees_with_eager(FlexConfig().build(), case, mask, heads, device="cuda", tolerance=1e-2)


@pytest.mark.parametrize("mask", [(True, None), (False, None)])
@pytest.mark.parametrize("case", CASES)
def test_flash_takes_a_scale(case, mask):
    check_agrees_with_eager(FlashConfig().build(), case, mask, (4, 2), scale=1.0, **BF16 | {"tolerance": 2e-2})


@pytest.mark.parametrize("biased", BIASES)
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_sdpa_adds_a_bias(case, mask, scale, biased):
    check_agrees_with_eager(SdpaConfig().build(), case, mask, (4, 2), scale=scale, biased=biased, **FP32)


@pytest.mark.parametrize("biased", BIASES)
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("mask", [(True, None), (True, 3), (False, None)])
@pytest.mark.parametrize("case", NONEMPTY[2:4])
def test_flex_adds_a_bias(case, mask, scale, biased):
    options = {"scale": scale, "biased": biased, "device": "cuda", "tolerance": 1e-2}
    check_agrees_with_eager(FlexConfig().build(), case, mask, (4, 4), **options)


@pytest.mark.parametrize("config", [AutoConfig, FlexConfig])
@pytest.mark.parametrize("causal", [True, False])
def test_a_bias_in_half_precision_follows_the_reference_in_fp32(config, causal):
    """Long enough for T5's last bucket; the gradient of the table, a sum over all pairs, is compared as a whole."""
    lengths = [512, 300, 17]
    inputs = [*random_qkv(sum(lengths), sum(lengths), (4, 4), "cuda", torch.bfloat16)]
    table = torch.randn(32, 4, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).requires_grad_()
    upstream = torch.randn(inputs[0].shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1))

    def results(attend, dtype):
        q, k, v = (x.to(dtype) for x in inputs)
        bias = RelativeBias(table, bidirectional=not causal, max_distance=128)
        out = attend(q, k, v, layout(lengths, device="cuda"), causal=causal, scale=1.0, bias=bias)
        return out, *torch.autograd.grad(out, [*inputs, table], upstream.to(dtype))

    expected = results(SdpaConfig().build(), torch.float32)
    for found, exact in zip(results(config().build(), torch.bfloat16), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(found.flatten().float(), exact.flatten().float(), dim=0) > 0.999


@pytest.mark.parametrize("biased", BIASES)
def test_auto_takes_a_bias_in_single_precision(biased):
    check_agrees_with_eager(AutoConfig().build(), CASES[3], (True, None), (4, 2), biased=biased, **FP32)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("config", [FlashConfig, AutoConfig])
def test_flash_isolates_sequences(config, mask):
    check_isolates_sequences(config().build(), mask, **BF16)


@pytest.mark.parametrize("biased", [None, *BIASES])
@pytest.mark.parametrize("mask", [(True, None), (False, 3)])
def test_flex_isolates_sequences(mask, biased):
    check_isolates_sequences(FlexConfig().build(), mask, device="cuda", tolerance=1e-2, biased=biased)


def test_flash_refuses_what_it_cannot_do():
    attend = FlashConfig().build()
    q, k, v = random_qkv(4, 4, (4, 4), "cuda", torch.float32)
    with pytest.raises(ConfigError, match=r"attention=flash.*float32"):
        attend(q, k, v, layout([4], device="cuda"), causal=True)
    half = [x.bfloat16() for x in (q, k, v)]
    bias = RelativeBias(random_table(4, "cuda"), bidirectional=False, max_distance=20)
    with pytest.raises(ConfigError, match=r"model.positions: attention=flash adds no bias"):
        attend(*half, layout([4], device="cuda"), causal=True, bias=bias)


@pytest.mark.parametrize("config", [FlashConfig, AutoConfig, FlexConfig, SdpaConfig])
def test_a_decoder_trains_alike_with_every_backend(config):
    """One pack through a small Llama under bf16 autocast: hidden states as those of sdpa in fp32."""
    lengths = [64, 30, 1, 161]
    shape = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "norm": Norm.rmsnorm, "positions": Positions.rotary}
    tokens = torch.randint(97, (256,), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    positions = torch.cat([torch.arange(n, device="cuda") for n in lengths])

    def hidden(attend, autocast):
        with torch.device("meta"):
            model = DecoderConfig(max_seq_len=256, **shape).build(vocab_size=97, attend=attend)
        filled(model, 1, "cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            out = model(tokens, positions, layout(lengths, device="cuda"))
        out.float().square().mean().backward()
        return out, model.embedding.weight.grad

    for found, expected in zip(hidden(config().build(), True), hidden(SdpaConfig().build(), False), strict=True):
        assert torch.nn.functional.cosine_similarity(found.flatten().float(), expected.flatten(), dim=0) > 0.999
