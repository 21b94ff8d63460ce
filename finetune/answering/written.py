"""Texts that a model writes for examples, a share of them on each rank.

Holds how the ranks share the work. A rank that holds all weights generates by itself, with cached keys and values
(`pretrain.models.generation`); where weights are sharded every pass is a collective, over whole sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.answering.base import Engine
from finetune.data.batches import under_budget
from finetune.data.examples import Example, Examples
from pretrain.data.batch import Batch, Ragged
from pretrain.errors import check
from pretrain.models.base import EncoderDecoderModel
from pretrain.models.generation.beam import BeamSearch, beam_search, check_penalty
from pretrain.models.generation.generate import generate
from pretrain.models.generation.rules import NO_RULES
from pretrain.models.generation.sampling import Sampler
from pretrain.train.evaluation.hidden_states import hidden_states


@dataclass(kw_only=True)
class GenerationConfig:
    """How an answer is written when the model is measured and when it predicts."""

    beams: int = 1  # hypotheses that are kept at once; 1: always the likeliest token
    length_penalty: float = 1.0  # exponent of the length that divides a hypothesis's log-likelihood; beams above 1
    no_repeat_ngram: int = 0  # tokens; no run of so many may be written twice; beams above 1; 0: any may

    def __post_init__(self) -> None:
        check(self.beams >= 1, "task.generate.beams", self.beams, "at least 1 hypothesis")
        check(self.no_repeat_ngram >= 0, "task.generate.no_repeat_ngram", self.no_repeat_ngram, "0 (off) or more")
        check_penalty(self.length_penalty, "task.generate.length_penalty")
        for key, usual in (("length_penalty", 1.0), ("no_repeat_ngram", 0)):
            value, rule = getattr(self, key), "is for searches; set task.generate.beams above 1, or leave it out"
            check(self.beams > 1 or value == usual, f"task.generate.{key}", value, rule)

    @property
    def search(self) -> BeamSearch:
        """The search of several beams."""
        return BeamSearch(beams=self.beams, length_penalty=self.length_penalty, no_repeat_ngram=self.no_repeat_ngram)


@torch.no_grad()
def write_all(
    engine: Engine,
    examples: Examples,
    prompts: Sequence[list[int]],
    *,
    search: GenerationConfig,
    max_tokens: int,
    end: int,
) -> list[list[int]]:
    """Return the ids that the model writes after the prompt of each of E examples, without the id that stops it.

    That is `end`, or another one by the model's rules. At most `max_tokens`. A collective; what one rank would return.
    """
    world, ends = engine.world, {end, *(engine.codec.rules or NO_RULES).ends}
    sizes = np.array([len(prompt) + max_tokens for prompt in prompts], dtype=np.int64)
    if examples.source is not None:
        sizes += np.diff(examples.source.offsets)
    parts = under_budget(np.argsort(-sizes, kind="stable"), sizes, engine.max_tokens)
    write = partial(_generated if engine.whole else _by_passes, engine, search=search, max_tokens=max_tokens, ends=ends)
    trains = engine.module.training
    engine.module.eval()
    found: list[tuple[int, list[int]]] = []
    for first in range(0, len(parts), world.size):  # as many on every rank
        own = parts[first + world.rank].tolist() if first + world.rank < len(parts) else []
        sources = None if examples.source is None else [_row(examples.source, one) for one in own]
        found += zip(own, write([prompts[one] for one in own], sources), strict=True)
    engine.module.train(trains)
    rows: list[list[int]] = [[] for _ in prompts]
    for one, ids in itertools.chain(*world.gather(found)):
        rows[one] = list(itertools.takewhile(lambda token: token not in ends, ids))
    return rows


def _generated(
    engine: Engine,
    prompts: list[list[int]],
    sources: list[list[int]] | None,
    *,
    search: GenerationConfig,
    max_tokens: int,
    ends: Collection[int],
) -> list[list[int]]:
    """Return the ids after each of this rank's prompts, by the model inside of the engine; no collective."""
    if not prompts:
        return []
    model: Any = engine.objective.model
    rules = engine.codec.rules or NO_RULES
    options: dict[str, Any] = {"max_tokens": max_tokens, "stop_ids": ends, "rules": rules}
    if sources is not None:
        options["sources"] = [torch.tensor(source) for source in sources]
    begun = [torch.tensor(prompt) for prompt in prompts]
    with engine.autocast():
        if search.beams == 1:
            return generate(model, begun, Sampler(temperature=0), **options)
        return beam_search(model, begun, search.search, **options)


def _row(ragged: Ragged, number: int) -> list[int]:
    return ragged.tokens[ragged.offsets[number] : ragged.offsets[number + 1]].tolist()


def _by_passes(
    engine: Engine,
    prompts: list[list[int]],
    sources: list[list[int]] | None,
    *,
    search: GenerationConfig,
    max_tokens: int,
    ends: Collection[int],
) -> list[list[int]]:
    """Return the likeliest ids after each of this rank's prompts, by passes over whole sequences. A collective."""
    model, rules = engine.objective.model, engine.codec.rules or NO_RULES
    written: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    last = chosen = torch.empty(0)  # the last token of each sequence of a pass, and the likeliest after it
    place = 0  # that the likeliest takes in the texts

    def choose(hidden: Tensor) -> None:
        nonlocal chosen, place
        bias = model.head_bias() if isinstance(model, EncoderDecoderModel) else None
        logits = F.linear(hidden[last], model.head_weight(), bias).float()
        rules.restrict(logits, place=place, full=range(len(logits)) if place + 1 == max_tokens else ())
        chosen = logits.argmax(dim=-1)
        place += 1

    with hidden_states(engine.module, model, choose):
        for _ in range(max_tokens):
            [left] = engine.world.sum_ints(len(going))
            if not left:
                break
            texts = [prompts[row] + written[row] for row in going]
            read = [None] * len(going) if sources is None else [sources[row] for row in going]
            rows = [Example(text, [0] * len(text), source=source) for text, source in zip(texts, read, strict=True)]
            whole = Examples.of(rows).batch(np.arange(len(rows)))
            batch = (whole if rows else Batch.empty(source=sources is not None)).to(engine.world.device)
            last = batch.offsets[1:].long() - 1
            engine.module(batch)
            for row, token in zip(going, chosen.tolist()[: len(going)], strict=True):
                written[row].append(token)
            going = [row for row in going if written[row][-1] not in ends]
    return written
