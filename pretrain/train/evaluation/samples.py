"""What a model writes while it trains: texts continued at every evaluation, under any strategy.

Holds the generation through the module that a strategy wrapped, whose weights may be spread over the ranks; one process
with a whole model generates faster with `models.generation`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from pretrain.data.batch import IGNORED, Batch, Inputs
from pretrain.distributed.world import World
from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.tracking.base import Sample
from pretrain.train.evaluation.hidden_states import hidden_states

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Continuations:
    """Continues the same prompts again and again, each time with the weights as they are then."""

    module: nn.Module  # as the strategy wrapped it
    model: Model  # inside of it, of a kind that generates
    tokenizer: Tokenizer
    prompts: dict[str, list[int]]  # text -> its ids, at least one
    max_tokens: int  # tokens added to each
    stop_id: int | None  # ends a document; None where nothing marks the ends
    world: World

    def __call__(self) -> list[Sample]:
        """Return each prompt with its likeliest continuation. A collective: every rank computes all of them.

        Every pass is over whole sequences of one shape, so that a compiled model is compiled once more at most: tokens
        that are still to come are there as others, which no token before them sees.
        """
        if not self.prompts:
            return []
        lengths = np.array([len(ids) for ids in self.prompts.values()])
        filled = [[*ids, *[0] * self.max_tokens] for ids in self.prompts.values()]
        offsets = np.concatenate([[0], np.cumsum(lengths + self.max_tokens)]).astype(np.int32)
        tokens = np.concatenate(filled).astype(np.int64)
        batch = Batch.of(Inputs(tokens, np.full_like(tokens, IGNORED), offsets)).to(self.world.device)
        newest = torch.from_numpy(offsets[:-1] + lengths - 1).to(self.world.device)
        chosen = newest

        def choose(hidden: Tensor) -> None:
            nonlocal chosen
            chosen = F.linear(hidden[newest], self.model.head_weight()).float().argmax(dim=-1)

        drawn: list[list[int]] = []  # one entry a token, of one id a prompt
        stopped = np.zeros(len(lengths), dtype=bool)
        with hidden_states(self.module, self.model, choose):
            while len(drawn) < self.max_tokens and not stopped.all():
                self.module(batch)
                [ids, *_] = self.world.gather(chosen.tolist())  # other devices may round to other tokens
                drawn.append(ids)
                stopped |= np.array(ids) == self.stop_id
                newest = newest + 1
                batch.tokens[newest] = torch.tensor(ids, device=self.world.device)
        columns = zip(*drawn, strict=True)
        return [self._sample(*prompt, list(ids)) for prompt, ids in zip(self.prompts.items(), columns, strict=True)]

    def _sample(self, prompt: str, before: list[int], after: list[int]) -> Sample:
        if self.stop_id in after:
            after = after[: after.index(self.stop_id)]
        text = self.tokenizer.decode([*before, *after])  # together: a decoder may take off the first token's blank
        return Sample(prompt, text.removeprefix(self.tokenizer.decode(before)))


def encoded_prompts(texts: list[str], tokenizer: Tokenizer, prefix: list[int], longest: int) -> dict[str, list[int]]:
    """Return the ids of each text, after those that begin a document; of a longer one its end, which is logged.

    Raises `ConfigError` for a text without any.
    """
    found = {text: [*prefix, *tokenizer.encode(text, add_special_tokens=False).ids] for text in texts}
    for text, ids in found.items():
        check(len(ids) > 0, "eval.samples", repr(text), "has no token, and none begins a document here; name a text")
        if len(ids) > longest:
            shown = f"{text[:40]!r}..."
            log.warning("eval.samples: %s has %d tokens; the model sees the last %d", shown, len(ids), longest)
            found[text] = ids[-longest:]
    return found
