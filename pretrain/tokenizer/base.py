"""Tokenizers: what every kind has in common, loading one, its document template and its mask token.

Holds no kind of tokenizer, each of which is a file beside this one, and no reading of sources; the `tokenizers` library
does the work. Free of torch. Every tokenizer ends as one `tokenizer.json`, so all later code knows one format.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pretrain.errors import ConfigError, DataError, check
from pretrain.files import read_json

# Tokens before and after a document for a tokenizer whose file has no template with both: the first row whose tokens it
# has. A single end-of-text token goes before each document: then every token has one before it to be predicted from,
# and the end of a document is predicted as the start of the next.
TEMPLATES = (
    (["<|endoftext|>"], []),  # GPT-2
    (["<s>"], ["</s>"]),  # Llama 1 and 2, RoBERTa
    (["[CLS]"], ["[SEP]"]),  # BERT
    (["<|begin_of_text|>"], ["<|end_of_text|>"]),  # Llama 3
    (["<bos>"], ["<eos>"]),  # Gemma
    ([], ["</s>"]),  # T5
)
_RESTORE = "restore it, or write it again"
USUAL_SIZE = 16384  # tokens of a vocabulary that nobody chose
BYTES_PER_TOKEN = 256  # of text, for each token of such a vocabulary: with less, many tokens are hardly ever seen
MASKS = ("[MASK]", "<mask>")  # names of the token that replaces hidden ones, if `tokenizer.mask` names none
PADS = ("<pad>", "[PAD]")  # names of the token that fills batches up where they are not ragged
FOR_TARGETS = "target_tokenizer.json"  # beside tokenizer.json where targets are cut by another one, of the same ids
OF_SOURCES, OF_TARGETS, IDS = "source.spm", "target.spm", "vocab.json"  # of which Marian's two were made
PAIR_FILES = (FOR_TARGETS, OF_SOURCES, OF_TARGETS, IDS)
SENTINEL = "<extra_id_{}>"  # name of the n-th token that stands for a span, from 0 (T5)

Template = tuple[list[str], list[str]]  # tokens before and after a text


class Roles(NamedTuple):
    """The special tokens of a tokenizer, by what they do."""

    prefix: list[str]  # before each document
    suffix: list[str]  # after each document
    mask: str | None  # replaces a hidden token; None if there is none


@dataclass(kw_only=True)
class TokenizerConfig:
    """Base of every tokenizer."""

    prefix: list[str] | None = None  # tokens before each document; null = by the tokenizer's own special tokens
    suffix: list[str] | None = None  # tokens after each document; null = by the tokenizer's own special tokens
    mask: str | None = None  # token that hides others; null = `[MASK]` or `<mask>`, if the tokenizer has one

    def roles(self) -> Roles:
        """Return its special tokens, which are known before any text is read.

        Raises `ConfigError` for settings that name tokens it does not have, and for files that are not a tokenizer.
        """
        raise NotImplementedError

    def tokens(self) -> Collection[str]:
        """Return the tokens that it is certain to have before any text is read. Raises what `roles` raises."""
        raise NotImplementedError


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
        """Return it as the text of a `tokenizer.json`. Raises `ConfigError` for other files."""

    def roles(self) -> Roles:
        """Return its special tokens, read from its files."""
        return _roles_in(_for_documents(Tokenizer.from_str(self.to_json())), self)

    def tokens(self) -> Collection[str]:
        """Return all its tokens, read from its files."""
        return Tokenizer.from_str(self.to_json()).get_vocab(with_added_tokens=True)


@dataclass(kw_only=True)
class TrainedTokenizer(TokenizerConfig, ABC):
    """A tokenizer that is trained on the corpus it will encode."""

    vocab_size: int = 0  # ids, special tokens included; 0 = 16,384, or fewer for less than 4 MiB of text
    train_bytes: int = 128 * 2**20  # UTF-8 bytes of text to train on at most, drawn from all of the corpus
    special_tokens: list[str] = field(default_factory=list)  # they take the first ids
    sentinels: int = 0  # tokens `<extra_id_0>`, ... that stand for spans, after the special tokens; T5 has 100

    template: ClassVar[Template | None] = None  # tokens that it puts around a text by itself
    alphabet_size: ClassVar[tuple[int, str]] = (256, "256 bytes")  # ids that it needs beside them, and for what

    def __post_init__(self) -> None:
        check(self.train_bytes > 0, "tokenizer.train_bytes", self.train_bytes, "must be above 0")
        check(self.sentinels >= 0, "tokenizer.sentinels", self.sentinels, "must not be negative; 0 adds none")
        rule = f"must hold {', '.join(self.required)} for templates, padding and masks; add the ones that are missing"
        known = set(self.special_tokens)
        check(known >= set(self.required), "tokenizer.special_tokens", self.special_tokens, rule)
        count, what = self.alphabet_size
        smallest = count + len(self.tokens())
        rule = f"must be at least {smallest}: {what} and the special tokens; or 0 (by the size of the text)"
        check(self.vocab_size >= smallest or not self.vocab_size, "tokenizer.vocab_size", self.vocab_size, rule)

    @property
    def required(self) -> tuple[str, ...]:
        """The special tokens that it cannot do without."""
        return ()

    def tokens(self) -> list[str]:
        """Return its special tokens, sentinels among them, in the order of their ids, which are the first ones."""
        sentinels = [SENTINEL.format(number) for number in range(self.sentinels)]
        return [*self.special_tokens, *(name for name in sentinels if name not in self.special_tokens)]

    def of_size(self, text_bytes: int | None) -> Self:
        """Return the tokenizer with a vocabulary that suits so many bytes of text; None: that suits much text."""
        fewest = self.alphabet_size[0] + len(self.tokens())
        size = USUAL_SIZE if text_bytes is None else min(fewest + text_bytes // BYTES_PER_TOKEN, USUAL_SIZE)
        return replace(self, vocab_size=size)

    @abstractmethod
    def train(self, texts: Iterator[str]) -> str:
        """Train on the texts and return it as the text of a `tokenizer.json`, the same for the same texts.

        Raises `DataError` for texts that do not fit the vocabulary's size.
        """

    def roles(self) -> Roles:
        """Return its special tokens, chosen from the configured ones: no other token is certain before training."""
        return _choose_roles(self.tokens(), self.template, self)


@dataclass(kw_only=True)
class TokenizerFacts:
    """What the manifest of a corpus records of its tokenizer, under the same names."""

    tokenizer_sha256: str  # of its canonical JSON
    vocab_size: int  # largest id + 1
    dtype: str  # "uint16" or "uint32", the smaller one that holds every id
    prefix: list[int]  # ids before each document
    suffix: list[int]  # ids after each document
    mask: int | None  # id that `tokenizer.mask` names, if it names one


def load_tokenizer(path: Path, sha256: str | None = None) -> Tokenizer:
    """Load a `tokenizer.json` for encoding whole documents.

    A document that contains "<|endoftext|>" gets the ids of those characters, not the special id.
    Raises `DataError` for a file that is missing or damaged, or whose `tokenizer_sha256` does not begin with `sha256`.
    """
    if sha256 is not None and not (found := tokenizer_sha256(path)).startswith(sha256):
        rule = f"another tokenizer (SHA-256 {found:.16}) than the one that belongs here ({sha256:.16}); restore it"
        raise DataError(f"{path}: {rule}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"{path}: not a readable tokenizer ({error}); {_RESTORE}") from None
    return _for_documents(tokenizer)


def tokenizer_sha256(path: Path) -> str:
    """Return the SHA-256 of a `tokenizer.json`, independent of its spacing and the order of its keys.

    Raises `DataError` for a file that is missing or holds no JSON object.
    """
    try:
        return _sha256_of(read_json(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable tokenizer ({error}); {_RESTORE}") from None


def text_sha256(serialized: str) -> str:
    """Return the `tokenizer_sha256` of a file with this text."""
    return _sha256_of(json.loads(serialized))


def _sha256_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def num_ids(tokenizer: Tokenizer) -> int:
    """Return the largest id of a tokenizer, plus 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def describe(path: Path, cfg: TokenizerConfig) -> TokenizerFacts:
    """Return the facts of a tokenizer. Raises `ConfigError` if no template fits its special tokens."""
    tokenizer = load_tokenizer(path)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    size = num_ids(tokenizer)
    prefix, suffix, _ = _roles_in(tokenizer, cfg)
    return TokenizerFacts(
        tokenizer_sha256=tokenizer_sha256(path),
        vocab_size=size,
        dtype="uint16" if size <= 2**16 else "uint32",
        prefix=[ids[token] for token in prefix],
        suffix=[ids[token] for token in suffix],
        mask=None if cfg.mask is None else ids[cfg.mask],
    )


def find_mask(vocabulary: Collection[str]) -> str | None:
    """Return the token that replaces hidden ones, found by its name; None if there is none."""
    return next((name for name in MASKS if name in vocabulary), None)


def find_pad(vocabulary: Collection[str]) -> str | None:
    """Return the token that fills batches up, found by its name; None if there is none."""
    return next((name for name in PADS if name in vocabulary), None)


def find_sentinels(vocabulary: Collection[str]) -> list[str]:
    """Return the tokens that stand for spans, in the order in which a text uses them: as many as follow from 0 on."""
    names = map(SENTINEL.format, range(len(vocabulary)))
    return list(itertools.takewhile(lambda name: name in vocabulary, names))


def special_tokens(names: list[str], mask: str | None) -> list[AddedToken]:
    """Return special tokens of a byte-level tokenizer; `mask` is the one that replaces hidden ones (None: MASKS).

    The mask takes the space before it, as the word that it hides did.
    """
    masks = MASKS if mask is None else (mask,)
    return [AddedToken(name, lstrip=name in masks, normalized=False, special=True) for name in names]


def byte_level(model: models.Model) -> Tokenizer:
    """Return a tokenizer that sees text as its UTF-8 bytes, one printable character each, so that nothing is lost."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check_enough_text(wanted: int, reached: int, what: str) -> None:
    """Raise `DataError` if training reached fewer than the `wanted` tokens, for lack of `what`."""
    if reached != wanted:
        raise DataError(
            f"tokenizer.vocab_size={wanted}: this corpus has {what} for {reached} tokens only; "
            f"choose tokenizer.vocab_size={reached} or less, or more text"
        )


@contextmanager
def reading_markup(tokenizer: Tokenizer, *, markup: bool) -> Iterator[None]:
    """Let special tokens that are written in texts be tokens, or else characters like any other."""
    usual = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = not markup
    try:
        yield
    finally:
        tokenizer.encode_special_tokens = usual


def _for_documents(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, set to encode whole documents and to read no special token in their text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _roles_in(tokenizer: Tokenizer, cfg: TokenizerConfig) -> Roles:
    return _choose_roles(tokenizer.get_vocab(with_added_tokens=True), _template_in(tokenizer), cfg)


def _choose_roles(vocabulary: Collection[str], template: Template | None, cfg: TokenizerConfig) -> Roles:
    """Return the configured special tokens, else those of `template`, else those of TEMPLATES and MASKS."""
    known = template or next((row for row in TEMPLATES if all(token in vocabulary for token in row[0] + row[1])), None)
    if known is None and (cfg.prefix is None or cfg.suffix is None):
        raise ConfigError(
            "tokenizer.prefix: this tokenizer has none of the known tokens that begin or end a document; "
            "name its own in tokenizer.prefix and tokenizer.suffix ([] for none)"
        )
    prefix, suffix = known or ([], [])
    prefix = prefix if cfg.prefix is None else cfg.prefix
    suffix = suffix if cfg.suffix is None else cfg.suffix
    where = "tokenizer.special_tokens" if isinstance(cfg, TrainedTokenizer) else "the vocabulary"
    for key, tokens in (("prefix", prefix), ("suffix", suffix), ("mask", [] if cfg.mask is None else [cfg.mask])):
        for token in tokens:
            if token not in vocabulary:
                raise ConfigError(f"tokenizer.{key}: {token!r} is not in {where}; name a token that is")
    return Roles(prefix, suffix, find_mask(vocabulary) if cfg.mask is None else cfg.mask)


def _template_in(tokenizer: Tokenizer) -> Template | None:
    """Return the tokens that the tokenizer itself puts before and after a text, if it does so on both sides.

    A template of one side marks the start of a prompt and no end of a document: then TEMPLATES applies.
    """
    encoded = tokenizer.encode("text")
    text = [place for place, sequence in enumerate(encoded.sequence_ids) if sequence is not None]
    if not text:  # a tokenizer that knows no letters (of DNA, say)
        return None
    prefix, suffix = encoded.tokens[: text[0]], encoded.tokens[text[-1] + 1 :]
    return (prefix, suffix) if prefix and suffix else None
