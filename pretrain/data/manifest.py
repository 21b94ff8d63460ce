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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pretrain.errors import DataError

FORMAT = 1
PAGE_BYTES = 16384  # bytes of token ids under one CRC-32
SPLITS = ("train", "validation")


@dataclass(kw_only=True)
class Shard:
    """One Arrow file and its page checksums."""

    file: str  # name inside the corpus directory, ends in .arrow; its checksums end in .crc
    documents: int
    tokens: int
    text_bytes: int  # UTF-8 bytes of the source text of its documents
    size: int  # bytes of the Arrow file
    sha256: str  # of the Arrow file


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
        """SHA-256 over what training can see: tokenizer, document template, mask and the hash of every shard."""
        seen = [self.format, self.dtype, self.tokenizer_sha256, self.prefix, self.suffix]
        seen += [[shard.sha256 for shard in self.splits[split].shards] for split in SPLITS]
        seen += [] if self.mask is None else [self.mask]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Write `manifest.json`; the caller writes it last, under a temporary directory name."""
        (directory / "manifest.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of a corpus directory. Raises `DataError` for a missing, torn or future one."""
        path = directory / "manifest.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise DataError(f"{path}: format {raw['format']}; this version reads {FORMAT}, prepare it again")
            splits = {
                name: Split(shards=[Shard(**shard) for shard in split["shards"]])
                for name, split in raw.pop("splits").items()
            }
            return cls(**raw, splits=splits)
        except FileNotFoundError:
            raise DataError(f"{path}: not there; {directory} is not a prepared corpus") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a corpus manifest ({error}); prepare the corpus again") from None
