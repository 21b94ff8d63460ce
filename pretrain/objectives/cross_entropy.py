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

from pretrain.data.batch import IGNORED

CPU_CHUNK_BYTES = 32 << 20  # of fp32 logits: what last-level caches hold
DEVICE_CHUNK_BYTES = 1 << 30  # of fp32 logits: products large enough to fill a GPU


def chunk_for(vocab_size: int, device_type: str) -> int:
    """Return the tokens whose logits exist at once, where settings do not say how many."""
    budget = CPU_CHUNK_BYTES if device_type == "cpu" else DEVICE_CHUNK_BYTES
    return max(1, budget // (4 * vocab_size))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    num_targets: int,
    bias: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total, nll, correct), all () fp32, summed over the targets that count.

    `hidden` (N, D) times `weight` (V, D) transposed, plus `bias` (V,), are the logits; `targets` (N,) int64 hold
    `num_targets` entries that are not IGNORED, and only their rows are projected. `nll` is the negative log-likelihood
    in nats, `correct` the number of targets whose own logit is the largest, both detached. `total` adds `z_loss` times
    the squared log of the softmax's normaliser (PaLM, section 5, 2022), measures against targets of which the share
    `label_smoothing` is spread over all V ids (Szegedy et al. 2016), and carries the graph, for one backward pass.
    Products run in the autocast precision, everything else in fp32.
    """
    hidden, targets = rows_with_targets(hidden, targets, num_targets)
    if chunk_tokens is None:
        chunk_tokens = chunk_for(weight.shape[0], hidden.device.type)
    trained = any(part is not None and part.requires_grad for part in (hidden, weight, bias))
    if torch.is_grad_enabled() and trained:
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, z_loss, label_smoothing, chunk_tokens)
    wanted = (False, False, False)
    sums, _ = _sums_and_gradients(hidden, weight, bias, targets, z_loss, label_smoothing, chunk_tokens, wanted)
    return sums


def rows_with_targets(hidden: Tensor, targets: Tensor, num_targets: int) -> tuple[Tensor, Tensor]:
    """Return the rows (M, D) of `hidden` (N, D) whose target is not IGNORED, and these targets (M,).

    Their number is known, so that finding them does not wait for the device.
    """
    if num_targets == targets.shape[0]:
        return hidden, targets
    rows = torch.nonzero_static(targets != IGNORED, size=num_targets).squeeze(1)
    return hidden.index_select(0, rows), targets.index_select(0, rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        label_smoothing: float,
        chunk_tokens: int,
    ) -> _Sums:
        wanted = ctx.needs_input_grad[:3]
        settings = (z_loss, label_smoothing, chunk_tokens)
        sums, ctx.gradients = _sums_and_gradients(hidden, weight, bias, targets, *settings, wanted)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, for the weight's gradient may be the largest tensor of the step: so only once.
        assert ctx.gradients is not None, "the gradients of this loss were used up by an earlier backward pass"
        scaled = [None if gradient is None else gradient.mul_(grads[0]) for gradient in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None, None, None


_Sums = tuple[Tensor, Tensor, Tensor]  # total, nll and correct, () each


def _sums_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    z_loss: float,
    label_smoothing: float,
    chunk_tokens: int,
    wanted: tuple[bool, ...],
) -> tuple[_Sums, list[Tensor | None]]:
    """Return the sums, and the total's gradients (M, D), (V, D) and (V,) as far as `wanted`."""
    device, hidden_dtype, weight_dtype = hidden.device, hidden.dtype, weight.dtype
    autocast = torch.is_autocast_enabled(device.type)
    compute = torch.get_autocast_dtype(device.type) if autocast else weight_dtype
    wide = torch.promote_types(compute, torch.float32)
    hidden, weight = hidden.to(compute), weight.to(compute)
    nll = torch.zeros((), dtype=wide, device=device)
    penalty, correct = torch.zeros_like(nll), torch.zeros_like(nll)
    others = label_smoothing / len(weight)  # of a target's probability, for each id
    hidden_grad = torch.empty_like(hidden) if wanted[0] else None
    weight_grad = torch.zeros(weight.shape, dtype=wide, device=device) if wanted[1] else None
    bias_grad = torch.zeros(len(weight), dtype=wide, device=device) if wanted[2] else None
    buffer = hidden.new_empty(min(chunk_tokens, len(hidden)), len(weight))
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(hidden), chunk_tokens):
            chunk, target = hidden[start : start + chunk_tokens], targets[start : start + chunk_tokens, None]
            logits = torch.mm(chunk, weight.t(), out=buffer[: len(chunk)]).to(wide)
            if bias is not None:
                logits += bias
            logit, largest = logits.gather(1, target), logits.amax(dim=1, keepdim=True)
            correct += (logit == largest).sum()
            mean = logits.mean(dim=1, keepdim=True) if label_smoothing else logit
            softmax = torch.softmax(logits, dim=1, out=logits)
            # The likeliest token's probability is exp(largest - log_normaliser), and at least 1/V.
            log_normaliser = largest - softmax.amax(dim=1, keepdim=True).log()
            nll += (log_normaliser - logit).sum()
            penalty += z_loss * log_normaliser.square().sum() + label_smoothing * (logit - mean).sum()
            if not any(wanted):
                continue
            gradient = softmax.mul_(1 + 2 * z_loss * log_normaliser) if z_loss else softmax
            if label_smoothing:
                gradient = gradient.sub_(others)
            own = gradient.new_full((1, 1), label_smoothing - 1.0)
            gradient = gradient.scatter_add_(1, target, own.expand_as(target))
            if bias_grad is not None:
                bias_grad += gradient.sum(dim=0)
            gradient = gradient.to(compute)
            if hidden_grad is not None:
                torch.mm(gradient, weight, out=hidden_grad[start : start + chunk_tokens])
            if weight_grad is not None and compute == wide:
                weight_grad.addmm_(gradient.t(), chunk)
            elif weight_grad is not None:
                weight_grad += gradient.t() @ chunk
    hidden_grad = None if hidden_grad is None else hidden_grad.to(hidden_dtype)
    weight_grad = None if weight_grad is None else weight_grad.to(weight_dtype)
    bias_grad = None if bias_grad is None or bias is None else bias_grad.to(bias.dtype)
    return (nll + penalty, nll, correct), [hidden_grad, weight_grad, bias_grad]
