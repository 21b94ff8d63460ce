"""Unigram language model, trained on the corpus.

Holds that kind of tokenizer only; what every kind has in common is in `pretrain.tokenizer.base`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizers import models, pre_tokenizers, processors, trainers

from pretrain.registry import register
from pretrain.tokenizer.base import TrainedTokenizer, byte_level, check_enough_text, special_tokens

REQUIRED = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
WITH_SENTINELS = ("<pad>", "</s>", "<unk>")  # what T5 has beside them
DECIMALS = 4  # of a log-probability
PENALTIES = 256 * 1e-4  # range of the scores that the trainer gives to bytes that are not in the texts


@register("tokenizer", "unigram")
@dataclass(kw_only=True)
class UnigramTokenizer(TrainedTokenizer):
    """Byte-level unigram language model, trained on the corpus (Kudo 2018, "Subword regularization").

    The algorithm of SentencePiece over the words and bytes of GPT-2: white space is kept, and no text is unknown.
    """

    special_tokens: list[str] = field(default_factory=lambda: list(REQUIRED))  # they take the first ids

    template = ["<s>"], ["</s>"]

    @property
    def required(self) -> tuple[str, ...]:
        """The special tokens that it cannot do without."""
        return WITH_SENTINELS if self.sentinels else REQUIRED

    def train(self, texts: Iterator[str]) -> str:
        """Train on the texts. Raises `DataError` if they hold too few distinct pieces for the vocabulary."""
        special = self.tokens()
        learner = byte_level(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=self.vocab_size,
            special_tokens=special,
            unk_token="<unk>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        entries = json.loads(learner.to_str())["model"]["vocab"][len(special) :]
        scored = [(piece, score) for piece, score in entries if score is not None]  # without any text no score
        vocabulary = [(token, 0.0) for token in special] + _canonical(scored)
        check_enough_text(self.vocab_size, len(vocabulary), "pieces")
        ids = {token: number for number, token in enumerate(special)}
        tokenizer = byte_level(models.Unigram(vocabulary, unk_id=ids["<unk>"]))
        tokenizer.add_special_tokens(special_tokens(special, self.mask))
        framed = "<s>" in ids  # else only ends are marked, as by T5
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if framed else "$A </s>",
            pair="<s> $A </s> </s> $B </s>" if framed else "$A </s> $B </s>",
            special_tokens=[(token, ids[token]) for token in ("<s>", "</s>") if token in ids],
        )
        return tokenizer.to_str(pretty=True)


def _canonical(scored: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return pieces and their log-probabilities, likeliest first, the same for the same texts.

    The last digits of the trainer's sums depend on the order of a hash table and of threads, so they are rounded. A
    byte that is not in the texts gets a score a little above the lowest one, in the order of a hash table: here all of
    them get the lowest.
    """
    lowest = min((score for _, score in scored), default=0.0)
    rounded = []
    for piece, score in scored:
        unseen = len(piece) == 1 and score <= lowest + PENALTIES
        rounded.append((piece, round(lowest if unseen else score, DECIMALS)))
    return sorted(rounded, key=lambda entry: (-entry[1], entry[0]))
