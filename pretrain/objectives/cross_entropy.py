"""Cross-entropy straight from hidden states: a chunk of logits at a time, never the whole (N, V) matrix.

Holds the arithmetic that language-model objectives share, and no objective.

The gradient of a summed loss with respect to the logits is known as soon as the loss is: softmax minus one-hot.
So the forward pass multiplies it back at once, while the chunk is in the cache, and keeps two gradients of the size of
hidden states and weight instead of the logits (as in Hsu et al. 2024, "Liger Kernel"). Letters: N tokens of the
micro-batch, M of them with a target, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.data.base import IGNORED

CPU_CHUNK_BYTES = 32 << 20  # of fp32 logits: what last-level caches hold
DEVICE_CHUNK_BYTES = 1 << 30  # of fp32 logits: products large enough to fill a GPU


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    num_targets: int,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (total, nll), both () fp32, summed over the targets that count.

    `hidden` (N, D) times `weight` (V, D) transposed are the logits; `targets` (N,) int64 hold `num_targets` entries
    that are not IGNORED, and only their rows are projected. `nll` is the negative log-likelihood in nats, detached.
    `total` adds `z_loss` times the squared log of the softmax's normaliser (PaLM, section 5, 2022) and carries the
    graph, for one backward pass. Products run in the autocast precision, everything else in fp32.
    """
    if num_targets < targets.shape[0]:
        # The count is known, so that finding the rows does not wait for the device.
        rows = torch.nonzero_static(targets != IGNORED, size=num_targets).squeeze(1)
        hidden, targets = hidden.index_select(0, rows), targets.index_select(0, rows)
    if chunk_tokens is None:
        budget = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else DEVICE_CHUNK_BYTES
        chunk_tokens = max(1, budget // (4 * weight.shape[0]))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, chunk_tokens)
    total, nll, _, _ = _sums_and_gradients(hidden, weight, targets, z_loss, chunk_tokens, (False, False))
    return total, nll


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[:2]
        total, nll, *ctx.gradients = _sums_and_gradients(hidden, weight, targets, z_loss, chunk_tokens, wanted)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # Scaled in place, for the weight's gradient may be the largest tensor of the step: so only once.
        assert ctx.gradients is not None, "the gradients of this loss were used up by an earlier backward pass"
        hidden_grad, weight_grad = (None if g is None else g.mul_(grads[0]) for g in ctx.gradients)
        ctx.gradients = None
        return hidden_grad, weight_grad, None, None, None


def _sums_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk_tokens: int, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return total and nll as above, and the total's gradients (M, D) and (V, D) as far as `wanted`."""
    device, hidden_dtype, weight_dtype = hidden.device, hidden.dtype, weight.dtype
    autocast = torch.is_autocast_enabled(device.type)
    compute = torch.get_autocast_dtype(device.type) if autocast else weight_dtype
    wide = torch.promote_types(compute, torch.float32)
    hidden, weight = hidden.to(compute), weight.to(compute)
    nll = torch.zeros((), dtype=wide, device=device)
    penalty = torch.zeros_like(nll)
    hidden_grad = torch.empty_like(hidden) if wanted[0] else None
    weight_grad = torch.zeros(weight.shape, dtype=wide, device=device) if wanted[1] else None
    buffer = hidden.new_empty(min(chunk_tokens, len(hidden)), len(weight))
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(hidden), chunk_tokens):
            chunk, target = hidden[start : start + chunk_tokens], targets[start : start + chunk_tokens, None]
            logits = torch.mm(chunk, weight.t(), out=buffer[: len(chunk)]).to(wide)
            logit, largest = logits.gather(1, target), logits.amax(dim=1, keepdim=True)
            softmax = torch.softmax(logits, dim=1, out=logits)
            # The likeliest token's probability is exp(largest - log_normaliser), and at least 1/V.
            log_normaliser = largest - softmax.amax(dim=1, keepdim=True).log()
            nll += (log_normaliser - logit).sum()
            penalty += z_loss * log_normaliser.square().sum()
            if not any(wanted):
                continue
            gradient = softmax.mul_(1 + 2 * z_loss * log_normaliser) if z_loss else softmax
            gradient = gradient.scatter_add_(1, target, gradient.new_full((1, 1), -1.0).expand_as(target)).to(compute)
            if hidden_grad is not None:
                torch.mm(gradient, weight, out=hidden_grad[start : start + chunk_tokens])
            if weight_grad is not None and compute == wide:
                weight_grad.addmm_(gradient.t(), chunk)
            elif weight_grad is not None:
                weight_grad += gradient.t() @ chunk
    hidden_grad = None if hidden_grad is None else hidden_grad.to(hidden_dtype)
    weight_grad = None if weight_grad is None else weight_grad.to(weight_dtype)
    return nll + penalty, nll, hidden_grad, weight_grad
