"""The manifest of a prepared corpus: what was prepared, from what, and the hashes that prove it.

Holds the types and their JSON; writing shards is in `prepare`, reading tokens in `corpus`. Free of torch.

A corpus directory holds `manifest.json`, `tokenizer.json` and, per split and shard, two files:

    train-00000.arrow   Arrow IPC file, one column "tokens" of LargeList<uint16|uint32>, one row a document,
                        in one or more record batches
    train-00000.crc     little-endian uint32 CRC-32s, batch after batch: of each PAGE_BYTES of its values (the last
                        page may be shorter), then one of all its offsets (int64, documents + 1 of them)
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pretrain.errors import DataError
from pretrain.files import read_json, sealed
from pretrain.tokenizer.base import load_tokenizer, num_ids

FORMAT = 1
PAGE_BYTES = 16384  # bytes of token ids under one CRC-32
SPLITS = ("train", "validation")
DTYPES = ("uint16", "uint32")
_SHARD = re.compile(r"[\w-][\w.-]*\.arrow", re.ASCII)


@dataclass(kw_only=True)
class Shard:
    """One Arrow file and its page checksums."""

    file: str  # name inside the corpus directory, ends in .arrow; its checksums end in .crc
    documents: int
    tokens: int
    text_bytes: int  # UTF-8 bytes of the source text of its documents
    size: int  # bytes of the Arrow file
    sha256: str  # of the Arrow file
    crc_sha256: str | None = None  # of its checksums; null in corpora of versions that did not note it


@dataclass(kw_only=True)
class Split:
    """The documents of one split, in order."""

    shards: list[Shard] = field(default_factory=list)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)


@dataclass(kw_only=True)
class Manifest:
    """Everything that identifies a prepared corpus."""

    source: dict[str, object]  # the source's configuration, as plain values
    dtype: str  # "uint16" or "uint32"
    vocab_size: int
    tokenizer_sha256: str
    prefix: list[int]  # ids before each document
    suffix: list[int]  # ids after each document
    mask: int | None = None  # id that `tokenizer.mask` named; null: that of [MASK] or <mask>, if there is one
    splits: dict[str, Split]
    skipped: dict[str, int]  # reason -> documents or lines left out or mended
    versions: dict[str, str]  # libraries that took part
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what training can see: tokenizer, document template, mask and all that is known of every shard.

        Of a corpus whose checksums have no hashes it is that of the versions which prepared such.
        """
        splits = [self.splits.get(split, Split()).shards for split in SPLITS]
        seen = [self.format, self.dtype, self.tokenizer_sha256, self.prefix, self.suffix]
        seen += [[shard.sha256 for shard in shards] for shards in splits]
        seen += [] if self.mask is None else [self.mask]
        seen += [self.vocab_size, *(list(map(asdict, shards)) for shards in splits)] if self.hashes_checksums else []
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    @property
    def hashes_checksums(self) -> bool:
        """Whether all page checksums have hashes here, so that they cannot be changed together with a shard."""
        return all(shard.crc_sha256 is not None for split in self.splits.values() for shard in split.shards)

    def tokenizer(self, directory: Path) -> Tokenizer:
        """Load the `tokenizer.json` of the corpus. Raises `DataError` unless it is that whose ids the corpus holds."""
        path = directory / "tokenizer.json"
        tokenizer = load_tokenizer(path, self.tokenizer_sha256)
        if (size := num_ids(tokenizer)) != self.vocab_size:
            raise DataError(f"{path}: has {size} ids, manifest.json says {self.vocab_size}; prepare the corpus again")
        return tokenizer

    def save(self, directory: Path) -> None:
        """Write `manifest.json`; the caller writes it last, under a temporary directory name."""
        (directory / "manifest.json").write_bytes(sealed(asdict(self)))

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of a corpus directory. Raises `DataError` for a missing, torn, foreign or future one."""
        path = directory / "manifest.json"
        try:
            manifest = read_json(path, cls, newest=FORMAT)
            manifest._check()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path}: not there; {directory} is not a prepared corpus") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a corpus manifest ({error}); prepare the corpus again") from None
        return manifest

    def _check(self) -> None:
        """Raise `ValueError` for numbers that no corpus has."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}, must be {' or '.join(DTYPES)}")
        largest = np.iinfo(self.dtype).max + 1
        if not 0 < self.vocab_size <= largest:
            raise ValueError(f"vocab_size {self.vocab_size}, must be 1 to {largest} for {self.dtype}")
        mask = [] if self.mask is None else [self.mask]
        if wrong := [id_ for id_ in (*self.prefix, *self.suffix, *mask) if not 0 <= id_ < self.vocab_size]:
            raise ValueError(f"id {wrong[0]}, must be below vocab_size {self.vocab_size}")
        for shard in (shard for split in self.splits.values() for shard in split.shards):
            if not _SHARD.fullmatch(shard.file):
                raise ValueError(f"file {shard.file!r}, must be the name of a file in the corpus that ends in .arrow")
            if min(shard.documents, shard.tokens, shard.text_bytes, shard.size) < 0:
                raise ValueError(f"{shard.file} has a number below 0")
