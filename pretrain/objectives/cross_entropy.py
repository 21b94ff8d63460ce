"""Cross-entropy straight from hidden states: a chunk of logits at a time, never the whole (N, V) matrix.

Holds the arithmetic that language-model objectives share, and no objective.

The gradient of a summed loss with respect to the logits is known as soon as the loss is: softmax minus one-hot.
So the forward pass multiplies it back at once, while the chunk is in the cache, and keeps two gradients of the size of
hidden states and weight instead of the logits (as in Hsu et al. 2024, "Liger Kernel"). Letters: N tokens of the
micro-batch, M of them with a target, C of a chunk, D width, V vocabulary, R length of a row of logits in memory.

R is V, rounded up so that rows are aligned. On a GPU products are as wide as rows, too: there the copy of the weight
that computes has R rows, of zeros beyond V. Logits beyond V are -inf to the softmax, and get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.batch import IGNORED

CPU_CHUNK_BYTES = 32 << 20  # of fp32 logits: what last-level caches hold
DEVICE_CHUNK_BYTES = 1 << 30  # of fp32 logits: products large enough to fill a GPU
ALIGNMENT = 64  # logits: 128 bytes in half precision, as tensor cores want them, at least a CPU's cache line

ChunkLoss = Callable[..., tuple[Tensor, Tensor]]
"""`chunk_loss`, or what a compiler made of it."""


def chunk_loss(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    vocab_size: int,
    z_loss: float,
    label_smoothing: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return nll, penalty and correct, (3,) summed over the chunk, and the gradient of targets' own logits (C, 1).

    `logits` (C, R) are overwritten, `with_gradient` by the gradient of all others. `targets` are (C, 1), `bias` is (R,)
    in at least fp32, as results are. All passes over the chunk outside of products are in here, for a compiler to fuse:
    eagerly there are four (maximum, softmax, its maximum, conversion), compiled for a GPU two.
    """
    logits[:, vocab_size:] = -torch.inf
    wide = torch.promote_types(logits.dtype, torch.float32)
    values = logits.to(wide) if logits.is_cpu else logits  # a GPU's kernels convert on their way, a CPU's do it badly
    if bias is not None:
        values = values.add_(bias) if values.dtype == wide else values + bias
    own, largest = values.gather(1, targets).to(wide), values.amax(dim=1, keepdim=True).to(wide)
    mean = values[:, :vocab_size].mean(dim=1, keepdim=True, dtype=wide) if label_smoothing else own
    in_place = values.dtype == wide
    softmax = torch.softmax(values, dim=1, out=values) if in_place else torch.softmax(values, dim=1, dtype=wide)
    # The likeliest token's probability is exp(largest - log_normaliser), and at least 1/V.
    log_normaliser = largest - softmax.amax(dim=1, keepdim=True).log()
    nll = (log_normaliser - own).sum()
    penalty = z_loss * log_normaliser.square().sum() + label_smoothing * (own - mean).sum()
    sums = torch.stack([nll, penalty, (own == largest).sum().to(wide)])
    if z_loss:
        softmax = softmax.mul_(1 + 2 * z_loss * log_normaliser)
    if label_smoothing:
        softmax = softmax.sub_(label_smoothing / vocab_size)
    if with_gradient and logits.dtype != wide:
        logits.copy_(softmax)
    return sums, softmax.gather(1, targets) + (label_smoothing - 1.0)


class _Options(NamedTuple):
    """What the loss of a micro-batch depends on besides tensors."""

    z_loss: float
    label_smoothing: float
    chunk_tokens: int
    pad_weight: bool
    arithmetic: ChunkLoss


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
    pad_weight: bool | None = None,
    arithmetic: ChunkLoss = chunk_loss,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total, nll, correct), all () fp32, summed over the targets that count.

    `hidden` (N, D) times `weight` (V, D) transposed, plus `bias` (V,), are the logits; `targets` (N,) int64 hold
    `num_targets` entries that are not IGNORED, and only their rows are projected. `nll` is the negative log-likelihood
    in nats, `correct` the number of targets whose own logit is the largest, both detached. `total` adds `z_loss` times
    the squared log of the softmax's normaliser (PaLM, section 5, 2022), measures against targets of which the share
    `label_smoothing` is spread over all V ids (Szegedy et al. 2016), and carries the graph, for one backward pass.
    Products run in the autocast precision, everything else in fp32. `pad_weight` multiplies with R rows of the weight;
    None: on a GPU. `arithmetic` is `chunk_loss` or its compiled form. Neither changes results, rounding apart.
    """
    hidden, targets = rows_with_targets(hidden, targets, num_targets)
    if chunk_tokens is None:
        chunk_tokens = chunk_for(weight.shape[0], hidden.device.type)
    pad_weight = hidden.device.type != "cpu" if pad_weight is None else pad_weight
    options = _Options(z_loss, label_smoothing, chunk_tokens, pad_weight, arithmetic)
    trained = any(part is not None and part.requires_grad for part in (hidden, weight, bias))
    if torch.is_grad_enabled() and trained:
        return _LinearCrossEntropy.apply(hidden, weight, bias, targets, options)
    sums, _ = _sums_and_gradients(hidden, weight, bias, targets, options, (False, False, False))
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
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> _Sums:
        wanted = ctx.needs_input_grad[:3]
        sums, ctx.gradients = _sums_and_gradients(hidden, weight, bias, targets, options, wanted)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place, for the weight's gradient may be the largest tensor of the step: so only once.
        assert ctx.gradients is not None, "the gradients of this loss were used up by an earlier backward pass"
        scaled = [None if gradient is None else gradient.mul_(grads[0]) for gradient in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None


_Sums = tuple[Tensor, Tensor, Tensor]  # total, nll and correct, () each


def _sums_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: _Options,
    wanted: tuple[bool, ...],
) -> tuple[_Sums, list[Tensor | None]]:
    """Return the sums, and the total's gradients (M, D), (V, D) and (V,) as far as `wanted`."""
    device, hidden_dtype, weight_dtype, vocab_size = hidden.device, hidden.dtype, weight.dtype, len(weight)
    autocast = torch.is_autocast_enabled(device.type)
    compute = torch.get_autocast_dtype(device.type) if autocast else weight_dtype
    wide = torch.promote_types(compute, torch.float32)
    row = _row_length(vocab_size, device)
    hidden, weight = hidden.to(compute), _copied(weight, compute, row if options.pad_weight else vocab_size)
    wide_bias = None if bias is None else F.pad(bias.to(wide), (0, row - vocab_size))
    sums = torch.zeros(3, dtype=wide, device=device)
    hidden_grad = torch.empty_like(hidden) if wanted[0] else None
    weight_grad = torch.zeros(weight.shape, dtype=wide, device=device) if wanted[1] else None
    bias_grad = torch.zeros(vocab_size, dtype=wide, device=device) if wanted[2] else None
    buffer = hidden.new_empty(min(options.chunk_tokens, len(hidden)), row)
    places = torch.arange(len(buffer), device=device)[:, None]
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(hidden), options.chunk_tokens):
            rows = slice(start, start + options.chunk_tokens)
            chunk, target = hidden[rows], targets[rows, None]
            logits = buffer[: len(chunk)]
            multiplied = logits[:, : len(weight)]
            torch.mm(chunk, weight.t(), out=multiplied)
            smoothing = (options.z_loss, options.label_smoothing)
            found, own = options.arithmetic(logits, target, wide_bias, vocab_size, *smoothing, any(wanted))
            sums += found
            if not any(wanted):
                continue
            # Not `scatter_`, which on a CPU converts all logits in half precision to fp32 and back (torch 2.13).
            logits.index_put_((places[: len(chunk)], target), own.to(compute))
            if bias_grad is not None:
                bias_grad += logits[:, :vocab_size].sum(dim=0, dtype=wide)
            if hidden_grad is not None:
                torch.mm(multiplied, weight, out=hidden_grad[rows])
            if weight_grad is not None:
                _add_product(weight_grad, multiplied.t(), chunk)
    nll, penalty, correct = sums
    hidden_grad = None if hidden_grad is None else hidden_grad.to(hidden_dtype)
    weight_grad = None if weight_grad is None else weight_grad[:vocab_size].to(weight_dtype)
    bias_grad = None if bias_grad is None or bias is None else bias_grad.to(bias.dtype)
    return (nll + penalty, nll, correct), [hidden_grad, weight_grad, bias_grad]


def _row_length(vocab_size: int, device: torch.device) -> int:
    """Return R. On a CPU an odd multiple: rows a power of two apart would share the same few places in its caches."""
    multiple = -(-vocab_size // ALIGNMENT)
    return ALIGNMENT * (multiple | 1 if device.type == "cpu" else multiple)


def _copied(weight: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """Return the weight (V, D) in the dtype that computes, followed by zeros up to so many rows; itself if it fits."""
    vocab_size, width = weight.shape
    if rows == vocab_size:
        return weight.to(dtype)
    copy = weight.new_empty(rows, width, dtype=dtype)
    copy[:vocab_size].copy_(weight)
    copy[vocab_size:].zero_()
    return copy


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, which may be wider than both. torch sums products wider on CUDA alone (2.13)."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
