"""Tokenizers that exist: a `tokenizer.json`, or the files of GPT-2.

Holds how they are read; training one is in the other files of this folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, models

from pretrain.errors import ConfigError, check
from pretrain.registry import register
from pretrain.settings.paths import expanded
from pretrain.tokenizer.base import ReadyTokenizer, byte_level, special_tokens


@register("tokenizer", "file")
@dataclass(kw_only=True)
class TokenizerFile(ReadyTokenizer):
    """A `tokenizer.json` of the `tokenizers` library."""

    path: str = ""  # the file, or a directory that holds a tokenizer.json

    def __post_init__(self) -> None:
        check(bool(self.path), "tokenizer.path", repr(self.path), "name a tokenizer.json")

    def files(self) -> list[Path]:
        path = Path(expanded(self.path, "tokenizer.path"))
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
        directory = Path(expanded(self.path, "tokenizer.path"))
        return [directory / "vocab.json", directory / "merges.txt"]

    def contents(self) -> list[bytes]:
        """Read both files; what is added to their entries counts as content, too."""
        return [*super().contents(), json.dumps(self.special_tokens).encode()]

    def to_json(self) -> str:
        vocabulary, merges = self.files()
        try:
            model = models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError(f"tokenizer.path={self.path}: not GPT-2's files ({error}); correct it") from None
        tokenizer = byte_level(model)
        tokenizer.add_special_tokens(special_tokens(self.special_tokens, self.mask))
        return tokenizer.to_str(pretty=True)
