"""Texts that a trained model writes: prompts in batches of like lengths, stop strings, ids as text.

Holds no choice of tokens: that is in `models/generation`. What a prompt is made of is in `model`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tokenizers import Tokenizer

from pretrain.errors import check
from pretrain.models.generation.beam import BeamSearch, beam_search
from pretrain.models.generation.generate import generate
from pretrain.models.generation.rules import NO_RULES, Rules
from pretrain.models.generation.sampling import Sampler
from pretrain.models.generation.steps import Generator

TEXTS_AT_A_TIME = 64  # continued together, beams counted
TOKENS_AT_A_TIME = 65_536  # that the texts continued together may have, with those to come
SORTED_TOGETHER = 1024  # texts among which those of like lengths are put together


class StopStrings:
    """Strings that end a text: it ends before the first of them."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        for string in strings:
            check(bool(string), "stop", repr(string), "must hold a character")
        self._tokenizer = tokenizer
        self._strings = strings
        # A token has a byte at least; one token more, as decoders take off the blank before their first.
        self._reach = 1 + max((len(string.encode()) for string in strings), default=0)

    def reached(self, row: int, ids: list[int]) -> bool:
        """Return whether a text of these ids has one of the strings in what its newest token completes."""
        if not self._strings:
            return False
        tail = self._tokenizer.decode(ids[-self._reach :])
        return any(string in tail for string in self._strings)

    def cut(self, text: str) -> str:
        """Return what stands before the first of the strings."""
        return text[: min((place for string in self._strings if (place := text.find(string)) >= 0), default=None)]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A model that generates, with its tokenizer."""

    model: Generator
    tokenizer: Tokenizer
    stop_ids: list[int]  # end a text
    decoder_start: int | None  # the id that the decoder of an encoder-decoder begins with; None: a decoder
    rules: Rules = NO_RULES  # that texts keep to
    markup: bool = False  # whether special tokens are kept in texts, but for the one that ends them

    def texts(
        self,
        prompts: list[list[int]],
        how: Sampler | BeamSearch,
        *,
        max_tokens: int,
        samples: int,
        strings: StopStrings,
    ) -> Iterator[list[str]]:
        """Yield `samples` texts that follow each prompt, or source of an encoder-decoder, prompt after prompt.

        With beam search, stop strings cut the texts that were found.
        """
        rows = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        found: list[str] = []
        for begin in range(0, len(rows), SORTED_TOGETHER):
            part = rows[begin : begin + SORTED_TOGETHER]
            drawn: list[list[int]] = [[]] * len(part)
            beams = how.beams if isinstance(how, BeamSearch) else 1
            for batch in batches([len(prompt) + beams * max_tokens for prompt, _ in part], TEXTS_AT_A_TIME // beams):
                ids = self._ids([part[place] for place in batch], how, max_tokens, strings.reached)
                for place, drawn_ids in zip(batch, ids, strict=True):
                    drawn[place] = drawn_ids
            pairs = zip(part, drawn, strict=True)
            found += [strings.cut(self._text(prompt, ids)) for (prompt, _), ids in pairs]
            while len(found) >= samples:
                yield found[:samples]
                del found[:samples]

    @torch.inference_mode()  # a fifth less work between the kernels of a small model than without gradients alone
    def _ids(
        self,
        rows: list[tuple[list[int], int]],
        how: Sampler | BeamSearch,
        max_tokens: int,
        stops: Callable[[int, list[int]], bool],
    ) -> list[list[int]]:
        """Return the ids that follow each (prompt, number of the sample)."""
        sources = None
        prompts = [torch.tensor(prompt) for prompt, _ in rows]
        if self.decoder_start is not None:
            prompts, sources = [torch.tensor([self.decoder_start])] * len(rows), prompts
        kind = {"max_tokens": max_tokens, "stop_ids": self.stop_ids, "sources": sources, "rules": self.rules}
        if isinstance(how, BeamSearch):
            return beam_search(self.model, prompts, how, **kind)
        return generate(self.model, prompts, how, **kind, streams=[_stream(*row) for row in rows], stops=stops)

    def _text(self, prompt: list[int], drawn: list[int]) -> str:
        """Return the text of drawn ids; decoders of words put the space before one only behind another."""
        decode = partial(self.tokenizer.decode, skip_special_tokens=not self.markup)
        drawn = drawn[:-1] if drawn and drawn[-1] in self.stop_ids else drawn
        if self.decoder_start is not None:
            return decode(drawn)
        before, whole = decode(prompt), decode(prompt + drawn)
        return whole.removeprefix(before) if whole.startswith(before) else decode(drawn)


def batches(sizes: Sequence[int], texts: int) -> list[list[int]]:
    """Return which texts of these sizes in tokens are continued together, in order of size: `texts` of them at most."""
    found: list[list[int]] = []
    tokens = 0
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):
        tokens += sizes[place]
        if not found or len(found[-1]) >= texts or tokens > TOKENS_AT_A_TIME:
            found.append([])
            tokens = sizes[place]
        found[-1].append(place)
    return found


def _stream(prompt: list[int], sample: int) -> int:
    """Return which numbers a continuation is drawn by: others for every prompt, and for every sample of it."""
    return int.from_bytes(hashlib.blake2b(np.array([*prompt, sample]).tobytes(), digest_size=8).digest())
