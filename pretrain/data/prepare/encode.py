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
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pretrain.data.manifest import SPLITS, Shard
from pretrain.data.prepare.cache_key import SourceInputs
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.shards import TEMPORARY, ShardWriter
from pretrain.data.prepare.workers import watched
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.base import Input, ReadableSource, Unit
from pretrain.files import fsync_path, read_json, replace_file, sealed
from pretrain.tokenizer.base import TokenizerFacts, TrainedTokenizer, load_tokenizer

# The tokenizers library holds about 100 bytes for each byte of text that it encodes at a time.
BATCH_CHARS = 2**15  # characters encoded at a time
CHUNK_CHARS = 2**16  # a document of more than twice as many is encoded in chunks
SMALLEST_UNIT, LARGEST_UNIT = 2**20, 2**27  # bytes of input
UNITS = 64  # that a corpus is cut into, between those sizes

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


def plan_units(source: ReadableSource, inputs: list[Input], unit_bytes: int) -> list[Unit]:
    """Cut a source into units, by their size in bytes or, if that is 0, into about UNITS of them."""
    total = sum(entry.size for entry in inputs)
    return source.units(inputs, unit_bytes or min(max(total // UNITS, SMALLEST_UNIT), LARGEST_UNIT))


def train_tokenizer(
    tokenizer: TrainedTokenizer, sources: dict[str, SourceInputs], cfg: PrepareConfig, threads: int
) -> str:
    """Train on the training documents of all sources, the same number of bytes from each unit. Returns its JSON."""
    os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"] = "true", str(threads)
    units = [
        (source, unit)
        for _, (source, inputs) in sorted(sources.items())
        for unit in plan_units(source, inputs, cfg.unit_bytes)
    ]
    bad = BadRecords(policy=cfg.on_invalid)

    def sample() -> Iterator[str]:
        for source, unit in units:
            left = tokenizer.train_bytes // len(units)
            for text in source.texts(unit, bad):
                data = text.encode()
                if not is_held_out(data, cfg.held_out):
                    yield from chunks(data[:left].decode(errors="ignore"))
                    left -= len(data)
                if left <= 0:
                    break

    return tokenizer.train(watched(sample()))


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
        for text, ids in encode_documents(_tokenizer(encoding.tokenizer), texts, facts.prefix, facts.suffix):
            data = text.encode()
            split = "validation" if is_held_out(data, cfg.held_out) else "train"
            writers[split].add(ids, len(data))
        shards = {split: writer.close() for split, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    fsync_path(encoding.directory)
    done = UnitRecord(unit=unit_id(unit), shards=shards, skipped=dict(bad.counts))
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


def unit_id(unit: Unit) -> str:
    """Return a hash of the ranges of a unit."""
    return hashlib.sha256(json.dumps(unit).encode()).hexdigest()


def is_held_out(data: bytes, fraction: float) -> bool:
    """Return whether a document belongs to the validation split.

    It depends on the document's UTF-8 bytes alone: as a corpus grows no document changes sides, and copies of a
    document are all on one side.
    """
    digest = hashlib.blake2b(data, digest_size=8, key=b"headwater held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


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
    tokenizer: Tokenizer, texts: Iterable[str], prefix: list[int], suffix: list[int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each text with its ids (n,) uint32, prefix and suffix included; memory is bounded by the longest text."""
    before, after = np.array(prefix, dtype=np.uint32), np.array(suffix, dtype=np.uint32)
    parts = [before]
    for batch in _batches(texts, cut=cuttable(tokenizer)):
        encodings = tokenizer.encode_batch_fast([chunk for chunk, _ in batch], add_special_tokens=False)
        for (_, text), encoding in zip(batch, encodings, strict=True):
            parts.append(np.array(encoding.ids, dtype=np.uint32))
            if text is not None:
                yield text, np.concatenate([*parts, after])
                parts = [before]


def cuttable(tokenizer: Tokenizer) -> bool:
    """Return whether chunks of a text have the ids of the whole: not if a tokenizer marks its start (Llama)."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return all(ids(left + right) == ids(left) + ids(right) for left, right in (("in", " two"), ("in\n", "two")))


def _batches(texts: Iterable[str], *, cut: bool) -> Iterator[list[tuple[str, str | None]]]:
    """Group chunks to about BATCH_CHARS. The last chunk of a text comes with the text, the others with None."""
    batch: list[tuple[str, str | None]] = []
    size = 0
    for text in texts:
        length = 0
        for chunk in chunks(text) if cut else [text]:
            length += len(chunk)
            batch.append((chunk, text if length == len(text) else None))
            size += len(chunk)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
