"""The names of prepared corpora and tokenizers: a hash of everything that decides their bytes.

Reads no text; `build` makes what the names stand for. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.data.manifest import FORMAT
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import PreparedSource, ReadableSource, SourceConfig
from pretrain.data.sources.locations import Input
from pretrain.data.sources.remote import is_remote, without_credentials
from pretrain.errors import ConfigError
from pretrain.registry import choices_in, plain
from pretrain.settings.paths import expanded
from pretrain.tokenizer.base import ReadyTokenizer, TokenizerConfig, TrainedTokenizer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SourceInputs(NamedTuple):
    """A source that is to be prepared."""

    source: ReadableSource
    inputs: list[Input]  # its files, as they are now


def texts_of(sources: dict[str, SourceConfig]) -> dict[str, SourceInputs]:
    """Return the sources whose text is to be prepared, with their files.

    Raises `ConfigError` for names that cannot be part of a path, sources of no kind, and sources without files.
    """
    texts: dict[str, SourceInputs] = {}
    for name, source in sources.items():
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"data.sources.{name}: a name has letters, digits, '.', '_' and '-'; choose another")
        if isinstance(source, ReadableSource):
            inputs = source.inputs()
            texts[name] = SourceInputs(source.settled(inputs), inputs)
        elif not isinstance(source, PreparedSource):
            raise ConfigError(f"data.sources.{name}: of no kind; choose one, e.g. +source@data.sources.{name}=text")
    return texts


def corpus_directories(
    sources: dict[str, SourceConfig], texts: dict[str, SourceInputs], tokenizer: TokenizerConfig, cfg: PrepareConfig
) -> dict[str, Path]:
    """Return the directory of the corpus of each source, prepared or not, in the order of the sources.

    Raises `ConfigError` for a source in whose folder they would lie.
    """
    for name, text in texts.items():
        if text.source.holds(cfg.directory):
            rule = f"name a folder that holds data.prepare.root={cfg.root}, which is no text"
            raise ConfigError(f"data.sources.{name}: its paths {rule}; name another one, or put that elsewhere")
    directories = {
        name: Path(expanded(source.path, f"data.sources.{name}.path"))
        for name, source in sources.items()
        if isinstance(source, PreparedSource)
    }
    identity = tokenizer_identity(tokenizer, texts, cfg) if texts else ""
    for name, text in texts.items():
        key = _key(_text_identity(text), identity, [tokenizer.prefix, tokenizer.suffix], *_settings(cfg), *_bounds(cfg))
        directories[name] = cfg.directory / f"{name}-{key}"
    return {name: directories[name] for name in sources}


def tokenizer_identity(tokenizer: TokenizerConfig, texts: dict[str, SourceInputs], cfg: PrepareConfig) -> str:
    """Return a key of the tokenizer that needs no training and no loading."""
    if isinstance(tokenizer, ReadyTokenizer):
        return _key(*(hashlib.sha256(data).hexdigest() for data in tokenizer.contents()), *_named_mask(tokenizer))
    settings = plain(fitting(tokenizer, texts)).items()
    roles = ("prefix", "suffix", "mask")
    trained = {name: value for name, value in settings if name not in roles and (name, value) != ("sentinels", 0)}
    choice, identities = type(tokenizer).__name__, sorted(map(_text_identity, texts.values()))
    return _key(choice, trained, identities, *_settings(cfg), *_named_mask(tokenizer))


def fitting(tokenizer: TokenizerConfig, texts: dict[str, SourceInputs]) -> TokenizerConfig:
    """Return the tokenizer, one that is to be trained with the size of its vocabulary."""
    if not isinstance(tokenizer, TrainedTokenizer) or tokenizer.vocab_size:
        return tokenizer
    sizes = [sum(entry.size for entry in text.inputs) for text in texts.values()]
    return tokenizer.of_size(sum(sizes) if all(sizes) else None)  # the size of a data set of the hub is not known


def source_values(source: ReadableSource) -> dict[str, Any]:
    """Return the settings of a source without its weight, which changes the mixture and not the corpus.

    Credentials in URLs are left out: they are nobody's business, and new ones make no other corpus.
    """
    [(_, _, choice)] = choices_in(source)
    values = {name: value for name, value in plain(source).items() if name != "weight"}
    return {"choice": choice} | {name: _public(value) for name, value in values.items()}


def _public(value: object) -> object:
    if isinstance(value, list):
        return [_public(each) for each in value]
    return without_credentials(value) if isinstance(value, str) and is_remote(value) else value


def _named_mask(tokenizer: TokenizerConfig) -> list[str]:
    """Return what `tokenizer.mask` adds to keys: nothing by default, so that older corpora keep their names."""
    return [] if tokenizer.mask is None else [tokenizer.mask]


def _text_identity(text: SourceInputs) -> str:
    return _key(source_values(text.source), text.inputs)


def _settings(cfg: PrepareConfig) -> list[Any]:
    """Return the settings that change the bytes of a corpus."""
    return [FORMAT, cfg.held_out, cfg.on_invalid.name, cfg.unit_bytes, cfg.batch_bytes]


def _bounds(cfg: PrepareConfig) -> list[Any]:
    """Return what leaves out documents of a corpus, but none of what a tokenizer is trained on; see `_named_mask`."""
    return [] if cfg.max_repeats is None else [{"max_repeats": cfg.max_repeats}]


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
