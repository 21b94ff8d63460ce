"""Models trained from nothing: the network as it is configured, with a tokenizer for the task's own texts.

Holds what stands in for a source where `init_from` names none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain.data.vocabulary import start_of
from pretrain.distributed.world import World
from pretrain.tokenizer.base import (
    ReadyTokenizer,
    TokenizerConfig,
    TokenizerFacts,
    TrainedTokenizer,
    describe,
    load_tokenizer,
)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """A network without weights and its tokenizer: what `Source` offers of a trained model, as far as it is there."""

    network: Any
    tokenizer: Tokenizer
    facts: TokenizerFacts
    path: Path  # directory of the run

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self.tokenizer

    @property
    def vocab_size(self) -> int:
        """The rows of the embedding."""
        return self.facts.vocab_size

    @property
    def template(self) -> tuple[list[int], list[int]]:
        """The ids before and after a document."""
        return self.facts.prefix, self.facts.suffix

    @property
    def mask(self) -> int | None:
        """The id of the mask token."""
        return self.facts.mask

    @property
    def decoder_start(self) -> int | None:
        """The id that a decoder sees first, as pretraining chooses it."""
        return start_of(self.tokenizer.get_vocab(with_added_tokens=True), *self.template)


def begin(network: Any, tokenizer: TokenizerConfig, texts: Iterator[str], world: World, *, path: Path) -> Nothing:
    """Return a network with a tokenizer, which is trained on `texts` unless it exists. A collective.

    Raises `DataError` for texts that are too few for the vocabulary, `ConfigError` for a tokenizer without a template.
    """
    made = None
    if world.is_first:  # the others wait: one trains with all the cores
        made = tokenizer.to_json() if isinstance(tokenizer, ReadyTokenizer) else _trained(tokenizer, texts)
    [serialized, *_] = world.gather(made)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(serialized, encoding="utf-8")
        facts = describe(file, tokenizer)
        return Nothing(network=network, tokenizer=load_tokenizer(file), facts=facts, path=path)


def _trained(tokenizer: TokenizerConfig, texts: Iterator[str]) -> str:
    assert isinstance(tokenizer, TrainedTokenizer)
    chosen, left = [], tokenizer.train_bytes
    for text in texts:
        chosen.append(text)
        left -= len(text.encode())
        if left <= 0:
            break
    sized = tokenizer if tokenizer.vocab_size else tokenizer.of_size(tokenizer.train_bytes - left)
    return sized.train(iter(chosen))
