"""Writing the shards of a prepared corpus, in the format that `manifest` describes.

Holds no encoding of text, which is in `encode`; reading and verifying tokens is in `corpus`. Free of torch.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pretrain.data.manifest import PAGE_BYTES, Shard
from pretrain.errors import DataError
from pretrain.files import replace_file

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TEMPORARY = "tmp-"  # files whose names begin so are not finished


class ShardWriter:
    """Writes one shard: a document at a time in, an Arrow file and its checksums out.

    Both files get their names when they are complete and on disk. Memory is bounded by `batch_bytes` of ids, or by the
    longest document if that is more.
    """

    def __init__(self, directory: Path, name: str, dtype: str, vocab_size: int, *, batch_bytes: int) -> None:
        """Open the shard `name` (such as "train-00000") of ids below `vocab_size`."""
        self._path = directory / f"{name}.arrow"
        self._temporary = directory / f"{TEMPORARY}{uuid.uuid4().hex}-{name}.arrow"
        self._dtype = np.dtype(dtype)
        self._vocab_size = vocab_size
        self._batch_tokens = batch_bytes // self._dtype.itemsize
        self._documents: list[np.ndarray] = []  # of the record batch that is being filled
        self._held_tokens = 0
        self._crcs: list[int] = []
        self._shard = Shard(file=self._path.name, documents=0, tokens=0, text_bytes=0, size=0, sha256="")
        kind = pa.large_list(pa.from_numpy_dtype(self._dtype))
        self._sink = _HashedFile(self._temporary)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), pa.schema([("tokens", kind)]))

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        """Add a document of ids (n,) that came from `text_bytes` of text. Raises `DataError` for an impossible id."""
        if len(ids) and ids.max() >= self._vocab_size:
            raise DataError(
                f"{self._path}: the tokenizer gave id {ids.max()}; ids must be below its vocabulary size "
                f"{self._vocab_size}; the tokenizer.json is inconsistent"
            )
        self._documents.append(ids.astype(self._dtype))
        self._held_tokens += len(ids)
        self._shard.text_bytes += text_bytes
        if self._held_tokens >= self._batch_tokens:
            self._write_batch()

    def close(self) -> Shard | None:
        """Complete both files and return what the manifest says of them, or None if no document was added."""
        if self._documents:
            self._write_batch()
        self._writer.close()
        self._sink.close()
        if not self._shard.documents:
            self._temporary.unlink()
            return None
        self._shard.size = self._temporary.stat().st_size
        self._shard.sha256 = self._sink.sha256.hexdigest()
        crcs = np.array(self._crcs, dtype="<u4").tobytes()
        self._shard.crc_sha256 = hashlib.sha256(crcs).hexdigest()
        replace_file(self._path.with_suffix(".crc"), [crcs], prefix=TEMPORARY)
        self._temporary.replace(self._path)
        return self._shard

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._temporary.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk again
            self._sink.close()

    def _write_batch(self) -> None:
        offsets = np.cumsum([0, *map(len, self._documents)], dtype=np.int64)  # (documents+1,)
        values = np.concatenate(self._documents)
        self._crcs += _batch_checksums(values, offsets)
        column = pa.LargeListArray.from_arrays(offsets, values)
        self._writer.write_batch(pa.record_batch([column], names=["tokens"]))
        self._shard.documents += len(self._documents)
        self._shard.tokens += len(values)
        self._documents, self._held_tokens = [], 0


def _batch_checksums(values: np.ndarray, offsets: np.ndarray) -> list[int]:
    """Return the CRC-32 of each page of a record batch's values, then that of its offsets."""
    data = values.view(np.uint8).data
    pages = [zlib.crc32(data[start : start + PAGE_BYTES]) for start in range(0, len(data), PAGE_BYTES)]
    return [*pages, zlib.crc32(offsets.data)]


class _HashedFile(io.BufferedWriter):
    """A new file that hashes what is written to it; `close` puts it on disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.sha256 = hashlib.sha256()

    def write(self, data: ReadableBuffer) -> int:
        self.sha256.update(data)
        return super().write(data)

    def close(self) -> None:
        try:
            if not self.closed:
                self.flush()
                os.fsync(self.fileno())
        finally:
            super().close()
