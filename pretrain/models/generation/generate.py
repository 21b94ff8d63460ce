"""The loop over tokens: the likeliest or a drawn one, for prompts of any lengths at once.

Holds no text: `trained.model` turns prompts into ids and ids into text. Beam search is in `beam`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from pretrain.models.generation.rules import NO_RULES, Rules
from pretrain.models.generation.sampling import Sampler
from pretrain.models.generation.steps import Generator, going_on, room, steps_of


@torch.no_grad()
def generate(
    model: Generator,
    prompts: Sequence[Tensor],
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
    streams: Sequence[int] | None = None,
    sources: Sequence[Tensor] | None = None,
    rules: Rules = NO_RULES,
    stops: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:
    """Return the ids that continue each of S prompts of ids, each (T,) int64 of any length.

    A continuation ends with one of `stop_ids`, where `stops` says so of its number and its ids so far, after
    `max_tokens`, or where the model has no positions left. It is what it would be if its prompt were alone, up to the
    order of floating-point sums: `streams` (S,) says by which numbers of the sampler each is drawn, in place of
    0, 1, ... Of an encoder-decoder the prompts are how its decoder begins, all of one length, and `sources` what it
    reads. The model is in eval mode. Raises `ValueError` for prompts and sources that the model cannot read (see
    `steps.room`), `NumericalError` for logits that are not finite.
    """
    rooms = room(model, prompts, sources, max_tokens)
    steps = steps_of(model, prompts, sources)
    logits = steps.begin()
    streams = range(len(prompts)) if streams is None else streams
    numbers = torch.from_numpy(np.array([sampler.numbers(stream, max(rooms)) for stream in streams])).to(logits.device)
    found: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for place in range(max_tokens):
        full = [row for row, text in enumerate(going) if place + 1 == rooms[text]]
        rules.restrict(logits, place=place, full=full)
        drawn = sampler(logits, numbers[:, place])
        ended = []
        for row, (text, token) in enumerate(zip(going, drawn.tolist(), strict=True)):
            ids = found[text]
            ids.append(token)
            if token in stop_ids or len(ids) == rooms[text] or (stops is not None and stops(text, ids)):
                ended.append(row)
        if len(ended) == len(going):
            break
        if ended:
            rows = going_on(len(going), ended)
            steps.select(rows)
            going, drawn, numbers = [going[row] for row in rows], drawn[rows], numbers[rows]
        logits = steps.step(drawn)
    return found
