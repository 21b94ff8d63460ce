"""Text generation: sample token after token, with cached keys and values.

Holds no text: `pretrain.sample` turns a prompt into ids and ids into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import check
from pretrain.models.base import Layout
from pretrain.models.decoder import Decoder
from pretrain.models.layers import KeyValueCache


def generate(
    model: Decoder,
    prompt: Tensor,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop_id: int | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every sample, (S,) int64 at a time, up to `max_tokens` times.

    `prompt` (S, T) int64 holds S prompts of one length, on the model's device; repeat a prompt for several samples.
    `temperature` divides the logits, 0 takes the likeliest token; `top_k` and `top_p` leave the k likeliest tokens,
    and the likeliest ones that together reach probability p (Holtzman et al. 2020). A sample that has drawn `stop_id`
    repeats it, and the stream ends when all samples have. `generator` lives on the model's device. The model is in eval
    mode. Raises `ValueError` for a setting out of range or a text longer than the model has positions for.
    """
    assert not model.training, "call model.eval() first: dropout would change the samples"
    length, limit = prompt.shape[1], model.max_positions
    check(length >= 1, "prompt", "empty", "must hold at least one token; begin with the end-of-text token")
    check(max_tokens >= 1, "max_tokens", max_tokens, "must be at least 1")
    check(temperature >= 0, "temperature", temperature, "must not be negative; 0 is greedy")
    check(top_k is None or top_k >= 1, "top_k", top_k, "must be at least 1")
    check(top_p is None or 0 < top_p <= 1, "top_p", top_p, "must lie in (0, 1]")
    rule = (
        f"a prompt of {length} tokens leaves {max(0, (limit or 0) - length)} of the model's {limit} learned positions"
    )
    check(limit is None or length + max_tokens <= limit, "max_tokens", max_tokens, f"{rule}; shorten one of the two")

    def choose(logits: Tensor) -> Tensor:
        return sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)

    return _stream(model, prompt, max_tokens, stop_id, choose)


@torch.no_grad()
def _stream(
    model: Decoder, prompt: Tensor, max_tokens: int, stop_id: int | None, choose: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    (num_samples, new), seen, tokens = prompt.shape, 0, prompt.flatten()
    starts = torch.arange(num_samples + 1, dtype=torch.int32, device=prompt.device)
    stopped = torch.zeros(num_samples, dtype=torch.bool, device=prompt.device)
    caches = [KeyValueCache(num_samples) for _ in model.blocks]
    for _ in range(max_tokens):
        layout = Layout(q_offsets=starts * new, k_offsets=starts * (seen + new), max_q=new, max_k=seen + new)
        positions = torch.arange(seen, seen + new, device=prompt.device).repeat(num_samples)
        hidden = model(tokens, positions, layout, caches)
        tokens = choose(F.linear(hidden[new - 1 :: new], model.head_weight()).float())
        if stop_id is not None:
            tokens = tokens.masked_fill(stopped, stop_id)
            stopped |= tokens == stop_id
        yield tokens
        if stopped.all():
            return
        seen, new = seen + new, 1


def sample(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return one token id a row, (S,) int64, drawn from logits (S, V) fp32 (see `generate`)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p is not None:
        probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        # A token stays if those before it do not reach p yet, so that the first one always does.
        beyond = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
