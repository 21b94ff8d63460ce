"""Tokenizers: training one on a corpus, loading one, and the ids that frame a document.

Holds no reading of sources; the `tokenizers` library does the work. Free of torch. Every tokenizer ends as one
`tokenizer.json`, so whatever comes later knows one format.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pretrain.errors import ConfigError, DataError, check
from pretrain.registry import register

# Tokens before and after a document, by the first row whose tokens a tokenizer has. A single end-of-text token goes
# before each document: then every token has one before it to be predicted from, and the end of a document is learnt as
# the beginning of the next.
FRAMES = (
    (["<|endoftext|>"], []),  # GPT-2
    (["<s>"], ["</s>"]),  # Llama 1 and 2, RoBERTa
    (["[CLS]"], ["[SEP]"]),  # BERT
    (["<|begin_of_text|>"], ["<|end_of_text|>"]),  # Llama 3
    (["<bos>"], ["<eos>"]),  # Gemma
)


@dataclass(kw_only=True)
class TokenizerConfig:
    """Base of every tokenizer."""

    prefix: list[str] | None = None  # tokens before each document; null = by the tokenizer's own special tokens
    suffix: list[str] | None = None  # tokens after each document; null = by the tokenizer's own special tokens


@dataclass(kw_only=True)
class ReadyTokenizer(TokenizerConfig, ABC):
    """A tokenizer that exists."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Name the files that it is read from."""

    def contents(self) -> list[bytes]:
        """Read its files. Raises `ConfigError` for one that cannot be read."""
        try:
            return [path.read_bytes() for path in self.files()]
        except OSError as error:
            raise ConfigError(f"tokenizer.path: cannot be read ({error}); correct it") from None

    @abstractmethod
    def to_json(self) -> str:
        """Return it as the text of a `tokenizer.json`. Raises `ConfigError` for files that are none."""


@dataclass(kw_only=True)
class TrainedTokenizer(TokenizerConfig, ABC):
    """A tokenizer that is trained on the corpus it will encode."""

    train_bytes: int = 128 * 2**20  # UTF-8 bytes of text to train on at most, drawn from all of the corpus

    @abstractmethod
    def train(self, texts: Iterator[str]) -> str:
        """Train on the texts and return it as the text of a `tokenizer.json`."""


@register("tokenizer", "bpe")
@dataclass(kw_only=True)
class BpeTokenizer(TrainedTokenizer):
    """Byte-level byte-pair encoding as in GPT-2, trained on the corpus (Sennrich et al. 2016; Radford et al. 2019)."""

    vocab_size: int = 16384  # ids, special tokens included
    min_frequency: int = 2  # occurrences that a pair needs to be merged
    special_tokens: list[str] = field(default_factory=lambda: ["<|endoftext|>"])  # they take the first ids

    def __post_init__(self) -> None:
        smallest = 256 + len(self.special_tokens)
        rule = f"must be at least {smallest}: 256 bytes and the special tokens"
        check(self.vocab_size >= smallest, "tokenizer.vocab_size", self.vocab_size, rule)
        check(self.min_frequency >= 1, "tokenizer.min_frequency", self.min_frequency, "must be at least 1")
        check(self.train_bytes > 0, "tokenizer.train_bytes", self.train_bytes, "must be above 0")

    def train(self, texts: Iterator[str]) -> str:
        """Train on the texts. Raises `DataError` if they hold too few distinct pairs for the vocabulary."""
        tokenizer = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=self.special_tokens,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        if (reached := tokenizer.get_vocab_size()) != self.vocab_size:
            raise DataError(
                f"tokenizer.vocab_size={self.vocab_size}: this corpus has pairs for {reached} tokens only "
                f"(tokenizer.min_frequency={self.min_frequency}); choose tokenizer.vocab_size={reached} or less, "
                "or more text"
            )
        return tokenizer.to_str(pretty=True)


@register("tokenizer", "file")
@dataclass(kw_only=True)
class TokenizerFile(ReadyTokenizer):
    """A `tokenizer.json` of the `tokenizers` library."""

    path: str = ""  # the file, or a directory that holds a tokenizer.json

    def __post_init__(self) -> None:
        check(bool(self.path), "tokenizer.path", repr(self.path), "name a tokenizer.json")

    def files(self) -> list[Path]:
        path = Path(self.path).expanduser()
        return [path / "tokenizer.json" if path.is_dir() else path]

    def to_json(self) -> str:
        [content] = self.contents()
        try:
            serialized = content.decode()
            Tokenizer.from_str(serialized)
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError(f"tokenizer.path={self.path}: not a readable tokenizer.json ({error})") from None
        return serialized


@register("tokenizer", "gpt2")
@dataclass(kw_only=True)
class Gpt2Tokenizer(ReadyTokenizer):
    """The files that GPT-2 was released with: `vocab.json` and `merges.txt`."""

    path: str = ""  # directory that holds both files
    special_tokens: list[str] = field(default_factory=lambda: ["<|endoftext|>"])  # entries that are no text

    def __post_init__(self) -> None:
        check(bool(self.path), "tokenizer.path", repr(self.path), "name the directory of vocab.json and merges.txt")

    def files(self) -> list[Path]:
        directory = Path(self.path).expanduser()
        return [directory / "vocab.json", directory / "merges.txt"]

    def to_json(self) -> str:
        vocabulary, merges = self.files()
        try:
            model = models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError(f"tokenizer.path={self.path}: not GPT-2's files ({error}); correct it") from None
        tokenizer = _byte_level(model)
        tokenizer.add_special_tokens(self.special_tokens)
        return tokenizer.to_str(pretty=True)


@dataclass(kw_only=True)
class TokenizerFacts:
    """What a corpus records of its tokenizer."""

    sha256: str  # of its canonical JSON
    vocab_size: int  # largest id + 1
    dtype: str  # "uint16" or "uint32", the smaller one that holds every id
    prefix: list[int]  # ids before each document
    suffix: list[int]  # ids after each document


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json` for encoding whole documents.

    Text is only text: a document that contains "<|endoftext|>" gets the ids of those characters, not the special id.
    Raises `DataError` for a file that is missing or damaged.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"{path}: not a readable tokenizer ({error}); prepare the corpus again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_sha256(path: Path) -> str:
    """Return the SHA-256 of a `tokenizer.json`, independent of its spacing and the order of its keys."""
    canonical = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def describe(path: Path, cfg: TokenizerConfig) -> TokenizerFacts:
    """Return the facts of a tokenizer. Raises `ConfigError` if no frame fits its special tokens."""
    vocabulary = load_tokenizer(path).get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    prefix, suffix = _frame(vocabulary, cfg)
    return TokenizerFacts(
        sha256=tokenizer_sha256(path),
        vocab_size=size,
        dtype="uint16" if size <= 2**16 else "uint32",
        prefix=prefix,
        suffix=suffix,
    )


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _frame(vocabulary: dict[str, int], cfg: TokenizerConfig) -> tuple[list[int], list[int]]:
    """Return the ids before and after each document: the configured ones, else those of the first fitting row."""
    known = next((row for row in FRAMES if set(row[0] + row[1]) <= vocabulary.keys()), None)
    if known is None and (cfg.prefix is None or cfg.suffix is None):
        raise ConfigError(
            "tokenizer.prefix: this tokenizer has none of the known tokens that begin or end a document; "
            "name its own in tokenizer.prefix and tokenizer.suffix ([] for none)"
        )
    prefix, suffix = known or ([], [])
    prefix = prefix if cfg.prefix is None else cfg.prefix
    suffix = suffix if cfg.suffix is None else cfg.suffix
    for key, tokens in (("tokenizer.prefix", prefix), ("tokenizer.suffix", suffix)):
        for token in tokens:
            if token not in vocabulary:
                raise ConfigError(f"{key}={tokens}: {token!r} is not in the vocabulary; name tokens that are")
    return [vocabulary[token] for token in prefix], [vocabulary[token] for token in suffix]
