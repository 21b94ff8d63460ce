"""WordPiece, trained on the corpus.

Holds that kind of tokenizer only; what every kind has in common is in `pretrain.tokenizer.base`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pretrain.errors import DataError, check
from pretrain.registry import register
from pretrain.tokenizer.base import TrainedTokenizer, check_enough_text

REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"  # starts a token that continues a word
LONGEST_WORD = 100  # characters; a longer word becomes [UNK], as in BERT


@register("tokenizer", "wordpiece")
@dataclass(kw_only=True)
class WordPieceTokenizer(TrainedTokenizer):
    """WordPiece as in BERT, trained on the corpus (Schuster and Nakajima 2012; Devlin et al. 2018)."""

    lowercase: bool = True  # lower case without accents, as in BERT's uncased models
    alphabet: int = 1000  # distinct characters kept, the most frequent; a word with another one becomes [UNK]
    min_frequency: int = 2  # occurrences that a pair needs to be merged
    special_tokens: list[str] = field(default_factory=lambda: list(REQUIRED))  # they take the first ids

    template = ["[CLS]"], ["[SEP]"]
    alphabet_size = 1, "a character"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.alphabet >= 1, "tokenizer.alphabet", self.alphabet, "must be at least 1")
        check(self.min_frequency >= 1, "tokenizer.min_frequency", self.min_frequency, "must be at least 1")

    @property
    def required(self) -> tuple[str, ...]:
        """The special tokens that it cannot do without."""
        return REQUIRED

    def train(self, texts: Iterator[str]) -> str:
        """Train on the texts, which are held in memory.

        Raises `DataError` if they hold too few distinct pairs for the vocabulary, or too many characters.
        """
        tokenizer = Tokenizer(models.WordPiece())
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self.lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
        vocabulary = self._vocabulary([tokenizer.normalizer.normalize_str(text) for text in texts], tokenizer)
        tokenizer.model = models.WordPiece(
            vocabulary, unk_token="[UNK]", continuing_subword_prefix=CONTINUES, max_input_chars_per_word=LONGEST_WORD
        )
        tokenizer.add_special_tokens(self.tokens())
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
        return tokenizer.to_str(pretty=True)

    def _vocabulary(self, normalized: list[str], tokenizer: Tokenizer) -> dict[str, int]:
        """Return the id of every token, trained on normalized texts.

        The library's trainer numbers the tokens that continue a word in the order of a hash table and breaks ties
        between pairs by these numbers, so two trainings on the same texts differ. Here they are numbered beforehand,
        as if they were special tokens.
        """
        counts: Counter[str] = Counter()
        for text in normalized:
            counts.update(text)
        seen = (character for character in counts if _words(tokenizer, character))  # white space is in no word
        most_frequent = sorted(seen, key=lambda character: (-counts[character], character))
        alphabet = sorted(most_frequent[: self.alphabet])
        inside = [CONTINUES + character for character in alphabet if len(_words(tokenizer, f"a{character}")) == 1]
        smallest = len(self.tokens()) + len(inside) + len(alphabet)
        if self.vocab_size < smallest:
            raise DataError(
                f"tokenizer.vocab_size={self.vocab_size}: the {len(alphabet)} characters of this corpus and the "
                f"special tokens already take {smallest}; choose that or more, or fewer in tokenizer.alphabet"
            )
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = tokenizer.pre_tokenizer
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[*self.tokens(), *inside],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=CONTINUES,
            show_progress=False,
        )
        learner.train_from_iterator(normalized, trainer)
        what = f"pairs (tokenizer.min_frequency={self.min_frequency})"
        check_enough_text(self.vocab_size, learner.get_vocab_size(), what)
        return learner.get_vocab()


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    assert tokenizer.normalizer is not None and tokenizer.pre_tokenizer is not None
    normalized = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
