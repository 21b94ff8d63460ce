"""Text generation: sample token after token, with cached keys and values.

Holds no text: `pretrain.sample` turns a prompt into ids and ids into text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import check
from pretrain.models.base import Layout
from pretrain.models.decoder import Decoder
from pretrain.models.layers import KeyValueCache


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a token is drawn from logits. Raises `ValueError` for a setting out of range."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # only the k likeliest tokens are drawn
    top_p: float | None = None  # only the likeliest tokens of this probability together (Holtzman et al. 2020)
    generator: torch.Generator | None = None  # on the model's device

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "temperature", self.temperature, "must not be negative; 0 is greedy")
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        check(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")

    def __call__(self, logits: Tensor) -> Tensor:
        """Return one token id a row, (S,) int64, for logits (S, V) fp32."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], float("-inf"))
        if self.top_p is not None:
            probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
            # A token stays if those before it do not reach p yet, so that the first one always does.
            beyond = probabilities.cumsum(dim=-1) - probabilities >= self.top_p
            logits = logits.masked_fill(beyond.scatter(1, order, beyond), float("-inf"))
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=self.generator).squeeze(1)


def generate(
    model: Decoder, prompt: Tensor, sampler: Sampler, *, max_tokens: int, stop_id: int | None = None
) -> Iterator[Tensor]:
    """Yield the next token of every sample, (S,) int64 at a time, up to `max_tokens` times.

    `prompt` (S, T) int64 holds S prompts of one length, on the model's device; repeat a prompt for several samples. A
    sample that has drawn `stop_id` repeats it, and the stream ends when all samples have. The model is in eval mode.
    Raises `ValueError` for an empty prompt, and for a text longer than the model has positions for.
    """
    assert not model.training, "call model.eval() first: dropout would change the samples"
    length, limit = prompt.shape[1], model.max_positions
    check(length >= 1, "prompt", "empty", "must hold at least one token; begin with the end-of-text token")
    check(max_tokens >= 1, "max_tokens", max_tokens, "must be at least 1")
    left = max(0, (limit or 0) - length)
    rule = f"a prompt of {length} tokens leaves {left} of the model's {limit} learned positions; shorten one of the two"
    check(limit is None or length + max_tokens <= limit, "max_tokens", max_tokens, rule)
    return _stream(model, prompt, sampler, max_tokens, stop_id)


@torch.no_grad()
def _stream(model: Decoder, prompt: Tensor, sampler: Sampler, max_tokens: int, stop_id: int | None) -> Iterator[Tensor]:
    (num_samples, new), seen, tokens = prompt.shape, 0, prompt.flatten()
    starts = torch.arange(num_samples + 1, dtype=torch.int32, device=prompt.device)
    stopped = torch.zeros(num_samples, dtype=torch.bool, device=prompt.device)
    caches = [KeyValueCache(num_samples) for _ in model.blocks]
    for _ in range(max_tokens):
        layout = Layout(q_offsets=starts * new, k_offsets=starts * (seen + new), max_q=new, max_k=seen + new)
        positions = torch.arange(seen, seen + new, device=prompt.device).repeat(num_samples)
        hidden = model(tokens, positions, layout, caches)
        tokens = sampler(F.linear(hidden[new - 1 :: new], model.head_weight()).float())
        if stop_id is not None:
            tokens = tokens.masked_fill(stopped, stop_id)
            stopped |= tokens == stop_id
        yield tokens
        if stopped.all():
            return
        seen, new = seen + new, 1
