"""What one step of a generation is: for a decoder, and for an encoder-decoder, which reads its sources once.

Holds no choice of tokens: `generate` and `beam` feed back what they chose. Letters of shapes: `models/base.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import NumericalError, check
from pretrain.models.base import Layout, Stream
from pretrain.models.decoder import Decoder
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.generation.cache import Columns, KeyValueCache, SourceCache

Generator = Decoder | EncoderDecoder


class Steps(ABC):
    """A batch of unfinished texts, and the logits of the token that comes next in each."""

    def __init__(self, model: Generator, blocks: Iterable[Any], prompts: Sequence[Tensor]) -> None:
        self._device = model.head_weight().device
        self._prompts = _stream(prompts, self._device)
        lengths = list(map(len, prompts))
        self._columns = Columns(lengths, self._device)
        self._caches = [KeyValueCache(self._columns, block.attention.attend) for block in blocks]
        self._positions = torch.tensor(lengths, device=self._device)  # (S,) of the token that comes next
        self._offsets = torch.arange(len(lengths) + 1, dtype=torch.int32, device=self._device)  # of one token each

    @abstractmethod
    def _hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Return the final hidden states (N, D) of the newest tokens (N,)."""

    @abstractmethod
    def _logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (S, V) of final hidden states (S, D)."""

    def begin(self) -> Tensor:
        """Return the logits (S, V) fp32 of the tokens that follow the prompts. Called once, before all steps."""
        prompts = self._prompts
        hidden = self._hidden(prompts.tokens, prompts.positions, prompts.layout)
        return self._checked(hidden[prompts.offsets[1:].long() - 1])

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits (S, V) fp32 of the tokens that follow `tokens` (S,), one more of each text."""
        self._columns.end += 1
        hidden = self._hidden(tokens, self._positions, Layout.of(self._offsets, 1))
        self._positions = self._positions + 1
        return self._checked(hidden)

    def _checked(self, hidden: Tensor) -> Tensor:
        logits = self._logits(hidden).float()
        if not logits.amax(dim=-1).isfinite().all():
            raise NumericalError(
                "the model's logits are not finite numbers, so no token can be drawn; name another step"
            )
        return logits

    def select(self, rows: Sequence[int], texts: int = 1) -> None:
        """Continue text rows[i] as text i, and drop the others; `texts` neighbours have one source in common."""
        self._columns.select(rows)
        chosen, moved = _moves(rows, self._device)
        for cache in self._caches:
            cache.select(chosen, moved)
        self._positions = self._positions[chosen]
        self._offsets = torch.arange(len(rows) + 1, dtype=torch.int32, device=self._device)


class DecoderSteps(Steps):
    """The steps of a decoder."""

    def __init__(self, model: Decoder, prompts: Sequence[Tensor]) -> None:
        super().__init__(model, model.blocks, prompts)
        self._model = model

    def _hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return self._model(tokens, positions, layout, self._caches)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._model.head_weight())


class EncoderDecoderSteps(Steps):
    """The steps of an encoder-decoder, whose prompts have one length: they are how its decoder begins.

    A source is encoded once, and its keys and values are there once, for all texts that follow it.
    """

    def __init__(self, model: EncoderDecoder, prompts: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        super().__init__(model, model.decoder_blocks(), prompts)
        self._model = model
        self._texts = 1  # of each source
        self._source_columns = Columns(list(map(len, sources)), self._device)
        states = model.encode(_stream(sources, self._device))
        self._sources = [SourceCache(self._source_columns, *pair) for pair in model.keys_and_values(states)]
        self._cross_layout = Layout.of(self._offsets, 1)  # for its plans alone, kept while the sources are the same

    def _hidden(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return self._model.decode(tokens, positions, layout, self._sources, self._cross_layout, self._caches)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._model.head_weight(), self._model.head_bias())

    def select(self, rows: Sequence[int], texts: int = 1) -> None:
        """Continue text rows[i] as text i, and drop the others; `texts` neighbours have one source in common."""
        super().select(rows, texts)
        kept = [row // self._texts for row in rows[::texts]]
        self._texts = texts
        if kept != list(range(len(self._source_columns))):
            self._source_columns.select(kept)
            for cache in self._sources:
                cache.select(*_moves(kept, self._device))
            self._cross_layout = Layout.of(self._offsets, 1)


def steps_of(model: Generator, prompts: Sequence[Tensor], sources: Sequence[Tensor] | None) -> Steps:
    """Return the steps of a model that is in eval mode, for prompts and sources that `room` accepted."""
    assert not model.training, "call model.eval() first: dropout would change the texts"
    if isinstance(model, EncoderDecoder):
        assert sources is not None
        return EncoderDecoderSteps(model, prompts, sources)
    return DecoderSteps(model, prompts)


def room(model: Generator, prompts: Sequence[Tensor], sources: Sequence[Tensor] | None, max_tokens: int) -> list[int]:
    """Return how many tokens may follow each prompt: `max_tokens`, or what the model has positions for.

    The last token of an encoder-decoder's text needs no position, as nothing reads it: so a text may be as long as the
    targets that the model can learn. That of a decoder has one, as the text may be read again.

    Raises `ValueError` for a prompt or a source that is empty or too long, for sources of a decoder, and for an
    encoder-decoder without a source for each prompt or with prompts of uneven lengths.
    """
    limit = model.max_positions
    check(max_tokens >= 1, "max_tokens", max_tokens, "must be at least 1")
    for number, prompt in enumerate(prompts, 1):
        check(len(prompt) >= 1, "prompt", "empty", "must hold at least one token; begin with the end-of-text token")
        rule = f"its {len(prompt)} tokens leave none of the model's {limit} positions; shorten it"
        check(limit is None or len(prompt) < limit, "prompt", number, rule)
    if isinstance(model, EncoderDecoder):
        found = 0 if sources is None else len(sources)
        check(found == len(prompts), "sources", found, f"an encoder-decoder reads one a prompt, {len(prompts)}")
        lengths = {len(prompt) for prompt in prompts}
        check(len(lengths) <= 1, "prompts", sorted(lengths), "an encoder-decoder's have one length")
    else:
        check(sources is None, "sources", len(sources or []), "a decoder reads none; put them into the prompts")
    for number, source in enumerate(sources or [], 1):
        check(len(source) >= 1, "source", number, "must hold at least one token")
        rule = f"its {len(source)} tokens are more than the model's {limit} positions; shorten it"
        check(limit is None or len(source) <= limit, "source", number, rule)
    unread = 1 if isinstance(model, EncoderDecoder) else 0
    return [max_tokens if limit is None else min(max_tokens, limit - len(prompt) + unread) for prompt in prompts]


def going_on(count: int, ended: Sequence[int]) -> list[int]:
    """Return the rows of `count` that go on after those that `ended`; the last ones fill the gaps, so that few move."""
    gone = set(ended)
    kept = count - len(gone)
    last = (row for row in range(kept, count) if row not in gone)
    return [next(last) if row in gone else row for row in range(kept)]


def _moves(rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows, and the places of those that are not where they were."""
    moved = [place for place, row in enumerate(rows) if place != row]
    return torch.tensor(rows, device=device), torch.tensor(moved, dtype=torch.int64, device=device)


def _stream(sequences: Sequence[Tensor], device: torch.device) -> Stream:
    """Return sequences of ids end to end, each at positions 0, 1, ..."""
    lengths = list(map(len, sequences))
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens = torch.cat(list(sequences))
    return Stream(tokens.to(device), positions.to(device), offsets.to(device), max(lengths), lengths)
