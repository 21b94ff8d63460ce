"""Attention through torch's variable-length flash attention: ragged on the GPU, no padding anywhere, dropout or not.

Holds no kernel, and no choice of one: `flash_versions` swaps FlashAttention-2 for 3 or 4 where installed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import ConfigError, check
from pretrain.models.attention.flash_versions import Implementation, activate, deactivate, newer
from pretrain.models.attention.masks import check_window
from pretrain.models.base import Attend, AttentionConfig, AttentionUse, Bias, Layout
from pretrain.registry import register

HALF = (torch.bfloat16, torch.float16)
WIDEST, WIDEST_DROPPED = 256, 192  # heads that the kernels take on every device; and those that they train with dropout
NO_BIAS = "attention=flash adds no bias to scores; use attention=auto, flex or sdpa"


@register("attention", "flash")
@dataclass(kw_only=True)
class FlashConfig(AttentionConfig):
    """`attention=flash`: CUDA devices from sm80 (A100) in bf16 or fp16."""

    implementation: Implementation = Implementation.auto  # fa2 (torch's own), fa3, fa4, or auto: the fastest that works

    def check(self, *, dtype: torch.dtype, dropout: float, dropout_key: str, bias: str | None = None) -> None:
        """Raise `ConfigError` for single precision, for a bias, and for dropout with a version that has none."""
        rule = "attention=flash computes in half precision; set precision=bf16, or attention=sdpa"
        check(dtype in HALF, "precision", "fp32", rule)
        named = f"attention.implementation={self.implementation.value}"
        rule = f"{named} cannot drop attention weights; set 0, or leave it out"
        check(dropout == 0 or not newer(self.implementation), dropout_key, dropout, rule)
        if bias is not None:
            raise ConfigError(f"{bias}: {NO_BIAS}")

    def build(self) -> Attend:
        """Return the backend; raise `ConfigError` where no CUDA device can run it."""
        if not available():
            raise ConfigError(
                "attention=flash: needs a CUDA device of compute capability 8.0 or newer; use attention=sdpa"
            )
        return make_flash()

    def start(self, use: AttentionUse, device: torch.device) -> str:
        """Activate a version of FlashAttention; see `AttentionConfig`."""
        return activate(self.implementation, use, device, make_flash(), torch.cuda.get_device_capability(device))

    def end(self) -> None:
        """Go back to torch's own version."""
        deactivate()


def available() -> bool:
    """Return whether this process sees a CUDA device that the kernel supports."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def takes(dtype: torch.dtype, head_width: int, dropout: float) -> bool:
    """Return whether the kernel computes heads of this width in this precision, on every device."""
    return dtype in HALF and head_width % 8 == 0 and head_width <= (WIDEST_DROPPED if dropout else WIDEST)


def make_flash() -> Attend:
    """Return the backend without asking for a device."""
    from torch.nn.attention.varlen import varlen_attn  # pulls in torch._dynamo

    # torch 2.11 takes grouped heads as they are, later versions need the option.
    grouped_option: dict[str, Any] = (
        {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    )

    def flash(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        causal: bool,
        window: int | None = None,
        dropout: float = 0,
        scale: float | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        if not q.is_cuda or q.dtype not in HALF:
            found = f"{q.dtype} on {q.device}"
            raise ConfigError(f"attention=flash: computes in bf16 or fp16 on CUDA, not {found}; use attention=sdpa")
        if bias is not None:
            raise ConfigError(f"model.positions: {NO_BIAS}")
        check_window(layout, causal, window)
        if dropout:
            return _dropping(q, k, v, layout, kernel_window(window, causal), dropout, scale)
        out = varlen_attn(
            q,
            k,
            v,
            layout.q_offsets,
            layout.k_offsets,
            layout.max_q,
            layout.max_k,
            scale=scale,
            window_size=kernel_window(window, causal),
            **(grouped_option if q.shape[1] != k.shape[1] else {}),
        )
        assert isinstance(out, Tensor)
        return out

    return flash


def _dropping(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    window: tuple[int, int],  # as `kernel_window` returns it
    dropout: float,
    scale: float | None,
) -> Tensor:
    """Return what the kernel computes with dropout, (Nq, H, E).

    `varlen_attn` has no such option; the operator beneath it does, and torch's nested tensors train through it in the
    same way (`torch/nested/_internal/sdpa.py`).
    """
    out, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        layout.q_offsets,
        layout.k_offsets,
        layout.max_q,
        layout.max_k,
        dropout,
        window == (-1, 0),
        False,  # return_debug_mask
        scale=scale,
        window_size_left=window[0],
        window_size_right=window[1],
    )
    return out


def kernel_window(window: int | None, causal: bool) -> tuple[int, int]:
    """Return how many keys to the left and to the right of itself a query sees, as the kernel counts; -1 is no limit.

    Our `window` counts the query's own position too (see `Attend`), and under a causal mask nothing lies to the right.
    """
    beside = -1 if window is None else window - 1
    return beside, 0 if causal else beside
