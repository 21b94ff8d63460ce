"""Text generation: sample token after token, with cached keys and values, for prompts of any lengths at once.

Holds no text: `trained.model` turns prompts into ids and ids into text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator, Philox
from torch import Tensor

from pretrain.errors import NumericalError, check
from pretrain.models.base import Layout
from pretrain.models.decoder import Decoder
from pretrain.models.layers import KeyValueCache


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a token is drawn from logits. Raises `ValueError` for a setting out of range."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # only the k likeliest tokens are drawn
    top_p: float | None = None  # only the likeliest tokens of this probability together (Holtzman et al. 2020)
    seed: int = 1  # the same seed draws the same tokens

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "temperature", self.temperature, "must not be negative; 0 is greedy")
        check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        check(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")

    def numbers(self, stream: int, count: int) -> np.ndarray:
        """Return the numbers in [0, 1), (count,), that the tokens of one text are drawn by, a stream for each text."""
        return Generator(Philox(key=np.array([self.seed % 2**64, stream], dtype=np.uint64))).random(count)

    def __call__(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """Return one token id a row, (S,) int64, for logits (S, V) fp32, by numbers in [0, 1), (S,) fp64."""
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
        # Where the cumulated probability passes the number: so a row depends on nothing but itself.
        cumulated = logits.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(cumulated, numbers[:, None] * cumulated[:, -1:], right=True)
        return drawn.squeeze(1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Tensor],
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_id: int | None = None,
    streams: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the ids that continue each of S prompts of ids, each (T,) int64 of any length.

    A continuation ends with `stop_id`, after `max_tokens`, or where the model has no positions left. It is what it
    would be if its prompt were alone, up to the order of floating-point sums: `streams` (S,) says by which numbers of
    the sampler each is drawn, in place of 0, 1, ... The model is in eval mode. Raises `ValueError` for an empty prompt
    and for one that leaves no position, `NumericalError` for logits that are not finite.
    """
    assert not model.training, "call model.eval() first: dropout would change the samples"
    limit = model.max_positions
    check(max_tokens >= 1, "max_tokens", max_tokens, "must be at least 1")
    for number, prompt in enumerate(prompts, 1):
        check(len(prompt) >= 1, "prompt", "empty", "must hold at least one token; begin with the end-of-text token")
        rule = f"its {len(prompt)} tokens leave none of the model's {limit} positions; shorten it"
        check(limit is None or len(prompt) < limit, "prompt", number, rule)
    device = model.head_weight().device
    streams = range(len(prompts)) if streams is None else streams
    numbers = torch.from_numpy(np.array([sampler.numbers(stream, max_tokens) for stream in streams])).to(device)
    found: list[list[int]] = [[] for _ in prompts]
    going, seen, new = list(range(len(prompts))), [0] * len(prompts), [len(prompt) for prompt in prompts]
    tokens = torch.cat(list(prompts)).to(device)
    caches = [KeyValueCache() for _ in model.blocks]
    for place in range(max_tokens):
        layout, positions = _layout(seen, new, device)
        hidden = model(tokens, positions, layout, caches)
        logits = F.linear(hidden[layout.q_offsets[1:].long() - 1], model.head_weight()).float()
        if not logits.isfinite().all():
            raise NumericalError(
                "the model's logits are not finite numbers, so no token can be drawn; name another step"
            )
        drawn = sampler(logits, numbers[going, place]).tolist()
        for text, token in zip(going, drawn, strict=True):
            found[text].append(token)
        seen = [before + more for before, more in zip(seen, new, strict=True)]
        last = [token == stop_id or seen[row] + 1 == limit for row, token in enumerate(drawn)]
        kept = [row for row, ends in enumerate(last) if not ends]
        if not kept:
            break
        if len(kept) < len(going):
            ends = np.cumsum(seen)
            rows = torch.cat([torch.arange(ends[row] - seen[row], ends[row]) for row in kept]).to(device)
            for cache in caches:
                cache.keep(rows)
        going, seen, new = [going[row] for row in kept], [seen[row] for row in kept], [1] * len(kept)
        tokens = torch.tensor([drawn[row] for row in kept], device=device)
    return found


def _layout(seen: list[int], new: list[int], device: torch.device) -> tuple[Layout, Tensor]:
    """Return the layout of `new` tokens of each sequence after those `seen`, and their positions."""
    keys = [before + more for before, more in zip(seen, new, strict=True)]
    q_offsets, k_offsets = (
        torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device) for lengths in (new, keys)
    )
    positions = torch.cat([torch.arange(before, after) for before, after in zip(seen, keys, strict=True)]).to(device)
    return Layout(q_offsets, k_offsets, max(new), max(keys), new, keys), positions
