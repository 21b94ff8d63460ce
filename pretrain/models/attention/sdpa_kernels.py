"""Which kernel torch's scaled_dot_product_attention takes on a CUDA device.

Holds what Headwater does so that it is a fused one, and what it says where none fits: torch itself falls back in
silence to products of whole matrices (its "math" kernel), which hold all scores. The rules are those of `sdp_utils.cpp`
in torch's sources, 2.11 to 2.13: flash takes half precision without a mask, and grouped heads; the memory-efficient one
takes every precision, masks, biases with gradients and heads of multiples of 16 bytes, but no grouped heads.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend

from pretrain.models.attention.flash import HALF, WIDEST
from pretrain.models.base import AttentionUse

_ROWS = 8  # values: rows of masks begin at multiples of it, or the kernel copies the mask in every layer
_TRIED_TOKENS = 64
_KERNELS = {
    SDPBackend.MATH.value: "math",
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "memory-efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cuDNN",
}

log = logging.getLogger(__name__)


def takes_grouped_heads(dtype: torch.dtype, head_width: int, *, masked: bool) -> bool:
    """Whether a fused kernel on a CUDA device takes fewer key-value heads than query heads."""
    return dtype in HALF and head_width <= WIDEST and not masked


def repeated(x: Tensor, times: int) -> Tensor:
    """Return keys or values (N, K, E) with each head as often as query heads share it, (N, times K, E)."""
    return x.unsqueeze(2).expand(-1, -1, times, -1).flatten(1, 2)


def mask_dtype(q: Tensor) -> torch.dtype | None:
    """Return the type of masks for these queries; None: boolean ones, which kernels on CPUs take as they are."""
    return q.dtype if q.is_cuda else None


def added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask (..., Tq, Tk) as what is added to scores: 0 where a key is seen, else -inf.

    Made once, so that layers share it: torch would make one of a boolean mask in every layer, and autograd keep them.
    """
    width = seen.shape[-1]
    rows = torch.zeros((*seen.shape[:-1], -(-width // _ROWS) * _ROWS), dtype=dtype, device=seen.device)
    return rows[..., :width].masked_fill_(~seen, float("-inf"))


def describe(use: AttentionUse, device: torch.device) -> str:
    """Return which kernels sdpa takes for a model, for the plan of a run; warn if one of them holds all scores."""
    if device.type != "cuda":
        return "sdpa"
    kernels = {}
    for masked in (False, True):
        kernels[masked], reasons = kernel_of(use, device, masked=masked)
        if kernels[masked] == "math":
            mask = "with a mask or a bias" if masked else "without a mask"
            shape = f"{use.dtype}, {use.heads} heads of {use.head_width}, dropout {use.dropout}, {mask}"
            log.warning("sdpa: no fused kernel for %s: all scores of a sequence are held. %s", shape, " ".join(reasons))
    return f"sdpa ({kernels[False]}; with masks {kernels[True]})"


def kernel_of(use: AttentionUse, device: torch.device, *, masked: bool) -> tuple[str, list[str]]:
    """Return the name of the kernel that torch takes, and for "math" its reasons against each of the fused ones."""
    grouped = use.heads != use.kv_heads and takes_grouped_heads(use.dtype, use.head_width, masked=masked)
    q, k, v = (
        torch.empty((1, _TRIED_TOKENS, heads, use.head_width), dtype=use.dtype, device=device).transpose(1, 2)
        for heads in (use.heads, *[use.kv_heads if grouped else use.heads] * 2)
    )
    seen = torch.ones((1, 1, _TRIED_TOKENS, _TRIED_TOKENS), dtype=torch.bool, device=device)
    mask = added(seen, use.dtype) if masked else None
    q.requires_grad_()
    chosen = torch.ops.aten._fused_sdp_choice(q, k, v, mask, use.dropout, False, scale=None, enable_gqa=grouped)
    if chosen != SDPBackend.MATH.value:
        return _KERNELS.get(chosen, SDPBackend(chosen).name), []
    parameters = SDPAParams(q, k, v, mask, use.dropout, False, grouped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for fits in (can_use_flash_attention, can_use_efficient_attention):
            fits(parameters, debug=True)
    said = (str(each.message).partition(" (Triggered internally")[0] for each in caught)
    return _KERNELS[chosen], list(dict.fromkeys(said))
