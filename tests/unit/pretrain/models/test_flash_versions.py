"""Which FlashAttention a run takes. Torch's registry runs here as it is; the packages and kernels are stand-ins."""

import logging
import sys
from functools import partial

import pytest
import torch
from torch.nn import attention

from pretrain.errors import ConfigError
from pretrain.models.attention.auto import AutoConfig
from pretrain.models.attention.flash_versions import Implementation, activate, deactivate
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import AttentionUse

USE = AttentionUse(heads=4, kv_heads=2, head_width=16, causal=(True,), windows=(3, None), biased=False)
CPU = torch.device("cpu")
H100, B200, A100 = (9, 0), (10, 0), (8, 0)
TORCH = "FlashAttention-2 (torch)"
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="tests the refusal where there is no CUDA device")


class Handle:
    """What torch's registry keeps of an active version."""

    def remove(self):
        pass


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package for FlashAttention-3 that torch finds and imports; return what registers its kernels."""
    (tmp_path / "flash_attn_interface.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield partial(attention.register_flash_attention_impl, "FA3")
    deactivate()
    sys.modules.pop("flash_attn_interface", None)
    attention.register_flash_attention_impl("FA3", register_fn=attention._fa3.register_flash_attention_fa3)


def flash(q, k, v, layout, *, shift=0.0, **options):
    """Compute something else while another version is active, by the shift of a query."""
    active = attention.current_flash_attention_impl() is not None
    return sdpa(q + shift * active * torch.arange(len(q))[:, None, None], k, v, layout, **options)


def test_a_version_that_computes_the_same_is_activated_and_named_until_the_run_ends(installed):
    installed(register_fn=Handle)
    assert activate(Implementation.auto, USE, CPU, flash, H100) == "FlashAttention-3 (flash_attn_interface)"
    assert attention.current_flash_attention_impl() == "FA3"
    AutoConfig().end()
    assert attention.current_flash_attention_impl() is None


@pytest.mark.parametrize(
    ("register", "shift", "reason"),
    [
        (
            Handle,
            0.1,
            r"its results differ from those of FlashAttention-2 \(torch\) \(cosine [-0-9.]+, allow.*",
        ),
        (None, 0.0, "RuntimeError: Module 'flash_attn_interface' does not expose FA3 .*kernels"),  # says torch itself
    ],
)
def test_a_version_that_is_installed_and_wrong_is_left_out_with_a_warning(installed, caplog, register, shift, reason):
    if register:
        installed(register_fn=register)
    wrong = partial(flash, shift=shift)
    assert activate(Implementation.auto, USE, CPU, wrong, H100) == TORCH
    assert attention.current_flash_attention_impl() is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    with pytest.raises(ConfigError, match=rf"attention.implementation=fa3: {reason}; or set fa2, or auto"):
        activate(Implementation.fa3, USE, CPU, wrong, H100)


@pytest.mark.parametrize(
    ("wanted", "capability", "dropout", "reason"),
    [
        ("fa3", A100, 0.0, "made for compute capability 9.x, and this device has 8.0"),
        ("fa3", B200, 0.0, "made for compute capability 9.x, and this device has 10.0"),
        ("fa4", A100, 0.0, "made for compute capability 9.x and 10.x, and this device has 8.0"),
        ("fa3", H100, 0.1, "it cannot drop attention weights, and attention_dropout=0.1 needs a kernel that can"),
        ("fa3", H100, 0.0, "flash_attn_interface is not installed: build the folder hopper"),
        ("fa4", B200, 0.0, "flash_attn.cute.interface is not installed.*pip install flash-attn-4"),
    ],
)
def test_a_version_that_cannot_be_is_refused_by_name(wanted, capability, dropout, reason):
    use = AttentionUse(**{**vars(USE), "dropout": dropout})
    with pytest.raises(ConfigError, match=f"attention.implementation={wanted}: {reason}"):
        activate(Implementation(wanted), use, CPU, flash, capability)


@pytest.mark.parametrize(("capability", "said"), [(A100, ""), (H100, "FlashAttention-3"), (B200, "FlashAttention-4")])
def test_without_packages_torchs_own_computes_and_faster_ones_are_named(caplog, capability, said):
    with caplog.at_level("INFO", "pretrain"):
        assert activate(Implementation.auto, USE, CPU, flash, capability) == TORCH
    assert said in caplog.text and len(caplog.records) == bool(said)
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_torchs_own_can_be_asked_for(installed):
    installed(register_fn=Handle)
    assert activate(Implementation.fa2, USE, CPU, flash, H100) == TORCH


def test_auto_refuses_a_version_that_could_not_compute_anything():
    named = AutoConfig(implementation=Implementation.fa3)
    with pytest.raises(ConfigError, match=r"precision=fp32: attention.implementation=fa3 is for bf16"):
        named.check(dtype=torch.float32, dropout=0.0, dropout_key="attention_dropout")
    with pytest.raises(ConfigError, match=r"attention_dropout=0.1: attention.implementation=fa3 cannot drop"):
        named.check(dtype=torch.bfloat16, dropout=0.1, dropout_key="attention_dropout")
    AutoConfig().check(dtype=torch.float32, dropout=0.1, dropout_key="attention_dropout")


@no_cuda
def test_a_named_version_needs_a_device():
    with pytest.raises(ConfigError, match=r"attention.implementation=fa3: needs a CUDA device"):
        AutoConfig(implementation=Implementation.fa3).build()
