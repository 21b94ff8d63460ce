"""What worker processes do while a corpus is prepared: list units, train a tokenizer, turn a unit into shards.

Holds no scheduling and no locks, which are in `build`. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pretrain.data.manifest import SPLITS, Shard
from pretrain.data.prepare.cache_key import SourceInputs
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.held_out import HeldOut, Part
from pretrain.data.prepare.repetition import without_repetition
from pretrain.data.prepare.shards import TEMPORARY, ShardWriter
from pretrain.data.prepare.survey import Least, no_text, survey
from pretrain.data.prepare.workers import watched
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.base import ReadableSource, Unit
from pretrain.files import fsync_path, read_json, replace_file, sealed
from pretrain.tokenizer.base import TokenizerFacts, TrainedTokenizer, load_tokenizer

# The tokenizers library holds about 100 bytes for each byte of text that it encodes at a time.
BATCH_CHARS = 2**15  # characters encoded at a time
CHUNK_CHARS = 2**16  # a document of more than twice as many is encoded in chunks

# Pre-tokenizers usually start a new word between these characters, so a cut there changes no id; `cuttable` tries it.
_CUT = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")

_tokenizer = lru_cache(maxsize=1)(load_tokenizer)  # once a process


@dataclass(frozen=True)
class Encoding:
    """What all units of a source have in common when they are encoded."""

    source: ReadableSource
    directory: Path  # takes the shards
    tokenizer: Path  # tokenizer.json
    facts: TokenizerFacts
    cfg: PrepareConfig
    held_out: HeldOut


def train_tokenizer(
    tokenizer: TrainedTokenizer, sources: dict[str, SourceInputs], cfg: PrepareConfig, least: Least, threads: int
) -> str:
    """Train on the training documents of all sources, the same number of bytes from each unit. Returns its JSON.

    Raises `DataError` for a source that the first look refuses, and for sources without any text in the training split.
    """
    os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"] = "true", str(threads)
    surveys = [(text.source, survey(name, text, cfg, least)) for name, text in sorted(sources.items())]
    units = [(source, unit, look.held_out) for source, look in surveys for unit in look.units]
    bad = BadRecords(policy=cfg.on_invalid)

    def sample() -> Iterator[str]:
        for source, unit, held_out in units:
            left = tokenizer.train_bytes // len(units)
            for part in (part for text in source.texts(unit, bad) for part in held_out.parts(text)):
                if part.split == "train":
                    yield from chunks(part.text.encode()[:left].decode(errors="ignore"))
                    left -= part.size
                if left <= 0:
                    break

    texts = sample()
    first = next(texts, None)
    if first is None:
        names = " and ".join(f"data.sources.{name}" for name in sorted(sources))
        raise no_text(names, bad.counts, cfg, where="its training split, which a tokenizer is trained on")
    return tokenizer.train(watched(chain([first], texts)))


def encode_unit(encoding: Encoding, number: int, unit: Unit, record: Path) -> None:
    """Write the shards of a unit and then its record, which says that it is done."""
    facts, cfg = encoding.facts, encoding.cfg
    bad = BadRecords(policy=cfg.on_invalid)
    writers = {
        split: ShardWriter(
            encoding.directory, f"{split}-{number:05d}", facts.dtype, facts.vocab_size, batch_bytes=cfg.batch_bytes
        )
        for split in SPLITS
    }
    try:
        texts = watched(encoding.source.texts(unit, bad))
        parts = (part for text in texts for part in encoding.held_out.parts(text))
        encoded = encode_documents(_tokenizer(encoding.tokenizer), parts, facts.prefix, facts.suffix)
        if cfg.max_repeats is not None:
            frame: Any = {"before": len(facts.prefix), "after": len(facts.suffix)}
            encoded = without_repetition(encoded, cfg.max_repeats, counts=bad.counts, **frame)
        for part, ids in encoded:
            writers[part.split].add(ids, part.size)
        shards = {split: writer.close() for split, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    fsync_path(encoding.directory)
    done = UnitRecord(unit=unit_id(unit, encoding.held_out), shards=shards, skipped=dict(bad.counts))
    replace_file(record, [sealed(asdict(done))], prefix=TEMPORARY)


@dataclass(kw_only=True)
class UnitRecord:
    """What is kept of a finished unit until the corpus is complete."""

    unit: str  # `unit_id` of what was prepared
    shards: dict[str, Shard | None]  # split -> shard; None = no document of the unit is in the split
    skipped: dict[str, int]  # reason -> documents, lines or files

    @classmethod
    def load(cls, path: Path) -> UnitRecord | None:
        """Read a record, or return None if there is none, or a damaged one: then the unit is done again."""
        try:
            return read_json(path, cls)
        except (OSError, ValueError):
            return None


def unit_id(unit: Unit, held_out: HeldOut) -> str:
    """Return a hash of the ranges of a unit, and of how it is held out unless that is by hash, as it always was."""
    what = {"unit": unit, "by_position": True} if held_out.by_position else unit
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def chunks(text: str) -> Iterator[str]:
    """Yield a text in chunks of CHUNK_CHARS to twice that, cut where words begin if it has words."""
    start = 0
    while len(text) - start > 2 * CHUNK_CHARS:
        found = _CUT.search(text, start + CHUNK_CHARS, start + 2 * CHUNK_CHARS)
        stop = found.end() if found else start + 2 * CHUNK_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:] if start else text


def encode_documents(
    tokenizer: Tokenizer, parts: Iterable[Part], prefix: list[int], suffix: list[int]
) -> Iterator[tuple[Part, np.ndarray]]:
    """Yield each part with its ids (n,) uint32, prefix and suffix included; memory is bounded by the longest one."""
    before, after = np.array(prefix, dtype=np.uint32), np.array(suffix, dtype=np.uint32)
    ids = [before]
    for batch in _batches(parts, cut=cuttable(tokenizer)):
        encodings = tokenizer.encode_batch_fast([chunk for chunk, _ in batch], add_special_tokens=False)
        for (_, part), encoding in zip(batch, encodings, strict=True):
            ids.append(np.array(encoding.ids, dtype=np.uint32))
            if part is not None:
                yield part, np.concatenate([*ids, after])
                ids = [before]


def cuttable(tokenizer: Tokenizer) -> bool:
    """Return whether chunks of a text have the ids of the whole: not if a tokenizer marks its start (Llama)."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return all(ids(left + right) == ids(left) + ids(right) for left, right in (("in", " two"), ("in\n", "two")))


def _batches(parts: Iterable[Part], *, cut: bool) -> Iterator[list[tuple[str, Part | None]]]:
    """Group chunks to about BATCH_CHARS. The last chunk of a part comes with the part, the others with None."""
    batch: list[tuple[str, Part | None]] = []
    size = 0
    for part in parts:
        length = 0
        for chunk in chunks(part.text) if cut else [part.text]:
            length += len(chunk)
            batch.append((chunk, part if length == len(part.text) else None))
            size += len(chunk)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
