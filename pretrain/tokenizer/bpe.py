"""Byte-level byte-pair encoding, trained on the corpus.

Holds that kind of tokenizer only; what every kind has in common is in `pretrain.tokenizer.base`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizers import models, pre_tokenizers, trainers

from pretrain.errors import check
from pretrain.registry import register
from pretrain.tokenizer.base import TrainedTokenizer, byte_level, check_enough_text, special_tokens


@register("tokenizer", "bpe")
@dataclass(kw_only=True)
class BpeTokenizer(TrainedTokenizer):
    """Byte-level byte-pair encoding as in GPT-2, trained on the corpus (Sennrich et al. 2016; Radford et al. 2019)."""

    min_frequency: int = 2  # occurrences that a pair needs to be merged
    special_tokens: list[str] = field(default_factory=lambda: ["<|endoftext|>"])  # they take the first ids

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.min_frequency >= 1, "tokenizer.min_frequency", self.min_frequency, "must be at least 1")

    def train(self, texts: Iterator[str]) -> str:
        """Train on the texts. Raises `DataError` if they hold too few distinct pairs for the vocabulary."""
        tokenizer = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=special_tokens(self.tokens(), self.mask),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        what = f"pairs (tokenizer.min_frequency={self.min_frequency})"
        check_enough_text(self.vocab_size, tokenizer.get_vocab_size(), what)
        return tokenizer.to_str(pretty=True)
