"""Which kernels compute on a CUDA device: fused ones for all of sdpa, dropout in them, TF32, FlashAttention 3 and 4."""

import pytest
import torch
from attention_laws import (
    BIASES,
    CASES,
    MASKS,
    check_agrees_with_eager,
    check_drops_weights,
    layout,
    random_bias,
    random_qkv,
)
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.errors import ConfigError
from pretrain.models.attention.auto import AutoConfig
from pretrain.models.attention.flash import FlashConfig
from pretrain.models.attention.flash_versions import Implementation
from pretrain.models.attention.sdpa import SdpaConfig
from pretrain.models.base import AttentionUse
from pretrain.strategy.precision import FP32

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
USE = AttentionUse(
    heads=4, kv_heads=2, head_width=64, causal=(True, False), windows=(None, 30), biased=False, dtype=torch.bfloat16
)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("biased", [None, *BIASES])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fused_kernel_computes_whatever_is_asked_of_sdpa(dtype, mask, heads, biased, dropout):
    """Torch raises an error where only its math kernel, which is not allowed here, could."""
    causal, window = mask
    for lengths in ([64, 64], [70, 3, 41]):
        q, k, v = random_qkv(sum(lengths), sum(lengths), heads, "cuda", dtype)
        bias = random_bias(biased, len(q), len(k), heads[0], causal=causal, device="cuda")[0] if biased else None
        options = {"causal": causal, "window": window, "dropout": dropout, "bias": bias}
        with sdpa_kernel(FUSED):
            SdpaConfig().build()(q, k, v, layout(lengths, device="cuda"), **options).sum().backward()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plan_names_fused_kernels_and_warns_of_none(dtype, kv_heads, caplog):
    use = AttentionUse(**{**vars(USE), "dtype": dtype, "kv_heads": kv_heads, "dropout": 0.1})
    assert "math" not in SdpaConfig().start(use, DEVICE) and not caplog.records
    odd = AttentionUse(**{**vars(USE), "dtype": torch.float32, "head_width": 5})
    assert "math" in SdpaConfig().start(odd, DEVICE) and "all scores of a sequence are held" in caplog.text


@pytest.mark.parametrize("lengths", [[40, 40], [50, 9, 41, 50]])
@pytest.mark.parametrize("mask", [(True, None), (False, None), (False, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_fused_kernels_drop_weights(dtype, tolerance, mask, lengths):
    """Flash on the ragged stream, sdpa in padded buckets; torch's math kernel is not allowed."""
    options = {"device": "cuda", "dtype": dtype, "tolerance": tolerance}
    with sdpa_kernel(FUSED):
        for config in (AutoConfig(), SdpaConfig()):
            check_drops_weights(config.build(), lengths, mask, (4, 2), **options)


@pytest.mark.parametrize("implementation", [Implementation.fa3, Implementation.fa4])
def test_another_flash_attention_computes_what_torchs_own_does(implementation):
    config = FlashConfig(implementation=implementation)
    try:
        said = config.start(USE, DEVICE)
    except ConfigError as error:
        assert attention.current_flash_attention_impl() is None
        pytest.skip(str(error))
    try:
        assert f"FlashAttention-{implementation.value[-1]}" in said
        for case in CASES:
            for mask in MASKS:
                check_agrees_with_eager(
                    config.build(), case, mask, (4, 2), device="cuda", dtype=torch.bfloat16, tolerance=1e-2
                )
    finally:
        config.end()
    assert attention.current_flash_attention_impl() is None


def test_the_choice_of_a_version_leaves_dropout_to_torchs_own():
    use = AttentionUse(**{**vars(USE), "dropout": 0.1})
    assert AutoConfig().start(use, DEVICE) == "FlashAttention-2 (torch)"
    assert attention.current_flash_attention_impl() is None


@pytest.mark.skipif(not FP32().takes_tf32(DEVICE) if torch.cuda.is_available() else True, reason="the device has none")
def test_tf32_is_on_for_a_run_and_off_outside():
    a, b = (torch.randn((256, 256), device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(s)) for s in (0, 1))
    exact = a.double() @ b.double()

    def error() -> float:
        return float(((a @ b).double() - exact).norm() / exact.norm())

    assert error() < 1e-5
    with FP32().products(DEVICE):
        assert 1e-5 < error() < 1e-2
    with FP32(tf32=False).products(DEVICE):
        assert error() < 1e-5
    assert error() < 1e-5
