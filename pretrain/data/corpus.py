"""Reading a prepared corpus: one split as one stream of token ids, memory-mapped and verified.

Holds opening, checking and random access; what the files look like is in `manifest`, how the stream is cut in
`packing`. Free of torch.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pretrain.data.manifest import PAGE_BYTES, Manifest, Shard
from pretrain.errors import DataError

_MAGIC = b"ARROW1"  # how an Arrow IPC file begins and ends
_OFFSET = np.dtype("int64")
_REPAIR = "the file is damaged or was altered; delete the corpus directory and prepare it again"


@dataclass(slots=True)
class _Block:
    """One record batch: zero-copy views of its mapped buffers and where it lies."""

    path: Path
    file: mmap.mmap
    values: np.ndarray  # (tokens,) uint16 or uint32
    offsets: np.ndarray  # (documents+1,) int64, where its documents begin in `values`
    crcs: np.ndarray  # (pages+1,) uint32, of each page of `values`, then of `offsets`
    position: int  # byte offset of `values` in the file
    checked: bool = False  # whether `offsets` were compared with their checksum

    def prefetch(self, view: np.ndarray) -> None:
        """Ask the system to read a part of `values` or `offsets` from disk, without waiting for it."""
        begin = self.position + _address(view) - _address(self.values)
        aligned = begin - begin % mmap.PAGESIZE
        self.file.madvise(mmap.MADV_WILLNEED, aligned, begin + view.nbytes - aligned)

    def check(self, what: str, view: np.ndarray, number: int) -> None:
        """Compare a part of `values` or `offsets` with one of its checksums. Raises `DataError` if they differ."""
        found, expected = zlib.crc32(view.data), int(self.crcs[number])
        if found != expected:
            rule = f"{what} have CRC-32 {found:08x}, expected {expected:08x} by {self.path.stem}.crc"
            raise DataError(f"{self.path}: {rule}; {_REPAIR}")


class Corpus:
    """One split of a prepared corpus: `num_tokens` ids, document after document, addressed by position.

    Opening reads sizes and metadata only. The first read that touches a page of PAGE_BYTES checks all of it against
    its CRC-32 and against the vocabulary before an id of it is returned; so are the document offsets of a record batch.
    """

    def __init__(self, manifest: Manifest, blocks: list[_Block], text_bytes: int) -> None:
        """Join record batches into one stream. Use `open`."""
        self.manifest = manifest
        self.text_bytes = text_bytes  # UTF-8 bytes of the source text
        self._blocks = blocks
        self._block_starts = np.cumsum([0, *(len(block.values) for block in blocks)], dtype=np.int64)  # (blocks+1,)
        self._page_tokens = PAGE_BYTES // np.dtype(manifest.dtype).itemsize
        self._block_pages = np.cumsum([0, *(len(block.crcs) - 1 for block in blocks)])  # (blocks+1,) first page of each
        self._verified = np.zeros(self._block_pages[-1], dtype=bool)  # pages that were checked
        self.num_tokens = int(self._block_starts[-1])
        self.num_documents = sum(len(block.offsets) - 1 for block in blocks)

    @classmethod
    def open(cls, directory: Path, split: str) -> Corpus:
        """Map the shards of a split. Raises `DataError` for files that are not what the manifest says."""
        manifest = Manifest.load(directory)
        if split not in manifest.splits:
            raise DataError(f"{directory / 'manifest.json'}: no split {split!r}, only {sorted(manifest.splits)}")
        parts = manifest.splits[split]
        blocks = [block for shard in parts.shards for block in _open_shard(directory, shard, manifest.dtype)]
        return cls(manifest, blocks, parts.text_bytes)

    def verify(self) -> None:
        """Check all pages and document offsets now. Raises `DataError` for damage, as reading them would."""
        for number, block in enumerate(self._blocks):
            self._checked_offsets(number)
            self._verify_pages(np.array([number]), np.array([0]), np.array([len(block.values)]))

    def read(self, start: int, length: int) -> np.ndarray:
        """Return the ids (length,) int64 from a position of the stream. Raises `DataError` for damaged pages."""
        assert start >= 0 and length >= 0 and start + length <= self.num_tokens
        tokens = np.empty(length, dtype=np.int64)
        if length:
            self.copy(np.array([start]), np.array([length]), tokens, np.array([0]))
        return tokens

    def copy(self, starts: np.ndarray, lengths: np.ndarray, into: np.ndarray, at: np.ndarray) -> None:
        """Copy P ranges of the stream: `lengths[p]` >= 1 ids from position `starts[p]` to `into[at[p]:]`.

        All are (P,) int64 but `into`, (N,) int64. Raises `DataError` naming file and byte for a damaged page or an
        id outside the vocabulary.
        """
        if not len(starts):
            return
        owner, number, begin, end = self._split(starts, starts + lengths)
        target = at[owner] + begin + (self._block_starts[number] - starts[owner])
        self._verify_pages(number, begin, end)
        ranges = zip(number.tolist(), begin.tolist(), end.tolist(), target.tolist(), strict=True)
        for block, first, last, position in ranges:
            into[position : position + last - first] = self._blocks[block].values[first:last]

    def boundaries(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where documents end in P ranges of the stream, and how many end in each (P,), both int64.

        The end of a document is the position after its last token; range p is starts[p] < position <= ends[p], never
        empty. A document without tokens repeats the position before it.
        """
        owner, number, begin, end = self._split(starts, ends)
        found, counts = [], []
        for block, inside in zip(number.tolist(), np.stack([begin, end], axis=1), strict=True):
            offsets = self._checked_offsets(block)
            lower, upper = offsets.searchsorted(inside, side="right").tolist()
            found.append(offsets[lower:upper])
            counts.append(upper - lower)
        per_range = np.bincount(owner, weights=counts, minlength=len(starts)).astype(np.int64)
        if not found:
            return np.empty(0, dtype=np.int64), per_range
        return np.concatenate(found) + self._block_starts[number].repeat(counts), per_range

    def document_lengths(self) -> np.ndarray:
        """Return the tokens of every document of the split (num_documents,) int64, in order."""
        lengths = [np.diff(self._checked_offsets(block)) for block in range(len(self._blocks))]
        return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)

    def _split(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Cut ranges of the stream, none of them empty, at the borders of blocks.

        Returns for each part the range that it belongs to, its block, and its begin and end inside the block.
        """
        first = self._block_starts.searchsorted(starts, side="right") - 1
        last = self._block_starts.searchsorted(ends, side="left") - 1
        parts = last - first + 1
        owner = np.arange(len(starts)).repeat(parts)
        number = concatenated_ranges(first, parts)
        begin = np.maximum(starts[owner], self._block_starts[number]) - self._block_starts[number]
        end = np.minimum(ends[owner], self._block_starts[number + 1]) - self._block_starts[number]
        return owner, number, begin, end

    def _verify_pages(self, number: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        """Check the pages that the parts touch and that were not checked before."""
        first = self._block_pages[number] + begin // self._page_tokens
        last = self._block_pages[number] + (end - 1) // self._page_tokens
        pages = concatenated_ranges(first, last - first + 1)
        new = np.unique(pages[~self._verified[pages]])
        owners = self._block_pages.searchsorted(new, side="right") - 1
        firsts = (new - self._block_pages[owners]) * self._page_tokens
        places = [(self._blocks[block], first) for block, first in zip(owners.tolist(), firsts.tolist(), strict=True)]
        for block, start in places:  # all at once: a disk serves many reads in the time of one
            block.prefetch(block.values[start : start + self._page_tokens])
        for block, start in places:
            self._verify_page(block, start)
        self._verified[new] = True

    def _verify_page(self, block: _Block, start: int) -> None:
        """Check the page that begins with token `start` of a block."""
        values = block.values[start : start + self._page_tokens]
        position = block.position + start * values.itemsize
        block.check(f"bytes {position} to {position + values.nbytes}", values, start // self._page_tokens)
        if values.max() >= self.manifest.vocab_size:
            token = start + int(np.argmax(values >= self.manifest.vocab_size))
            raise DataError(
                f"{block.path}: id {block.values[token]} at byte {block.position + token * values.itemsize}; "
                f"ids must be below the vocabulary size {self.manifest.vocab_size}; "
                "the corpus was made with another tokenizer, prepare it again"
            )

    def _checked_offsets(self, number: int) -> np.ndarray:
        """Return the offsets of a block, which are checked when they are first needed."""
        block = self._blocks[number]
        if not block.checked:
            block.prefetch(block.offsets)
            block.check("document offsets", block.offsets, -1)
            first, last = block.offsets[[0, -1]].tolist()
            if (first, last) != (0, len(block.values)) or (block.offsets[1:] < block.offsets[:-1]).any():
                raise DataError(f"{block.path}: document offsets do not rise from 0 to {len(block.values)}; {_REPAIR}")
            block.checked = True
        return block.offsets


def concatenated_ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return starts[0], starts[0]+1, ... (counts[0] of them), then those of starts[1], and so on, as int64."""
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + (starts - (ends - counts)).repeat(counts)


def _open_shard(directory: Path, shard: Shard, dtype: str) -> list[_Block]:
    """Map one Arrow file and its checksums; return its record batches that hold tokens."""
    path = directory / shard.file
    _check_file(path, shard.size)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # reading ahead would fetch megabytes for each slot of some kilobytes
    whole = pa.py_buffer(mapped)
    head, tail = whole[: len(_MAGIC)].to_pybytes(), whole[-len(_MAGIC) :].to_pybytes()
    if head != _MAGIC or tail != _MAGIC:
        raise DataError(f"{path}: begins with {head} and ends with {tail}, expected {_MAGIC} both times; {_REPAIR}")
    try:
        reader = pa.ipc.open_file(whole)
        _check_schema(path, reader.schema, dtype)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        views = [_views(path, whole, batch, dtype) for batch in batches]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Arrow IPC file ({error}); {_REPAIR}") from None

    _check_equal(path, "documents", sum(len(offsets) - 1 for _, offsets, _ in views), shard.documents)
    _check_equal(path, "tokens", sum(len(values) for values, _, _ in views), shard.tokens)
    checksums = [-(-values.nbytes // PAGE_BYTES) + 1 for values, _, _ in views]
    crc_path = path.with_suffix(".crc")
    _check_file(crc_path, sum(checksums) * np.dtype("<u4").itemsize)
    crcs = np.memmap(crc_path, dtype="<u4", mode="r") if checksums else np.empty(0, dtype="<u4")
    if shard.crc_sha256 is not None:
        _check_equal(crc_path, "SHA-256", hashlib.sha256(crcs.data).hexdigest(), shard.crc_sha256)
    per_batch = np.split(crcs, np.cumsum(checksums))[:-1]
    return [
        _Block(path, mapped, values, offsets, own, position)
        for (values, offsets, position), own in zip(views, per_batch, strict=True)
    ]


def _views(path: Path, whole: pa.Buffer, batch: pa.RecordBatch, dtype: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the ids and offsets of a record batch as views of the mapped file, and where in it the ids lie."""
    column = batch.column(0)
    ids = column.values  # an object made anew at each access
    if column.null_count or ids.null_count:
        raise DataError(f"{path}: holds nulls; {_REPAIR}")
    # Not `to_numpy`: it would import pandas where that is installed.
    values, offsets = (
        np.frombuffer(array.buffers()[1], dtype=kind, count=len(array), offset=array.offset * kind.itemsize)
        for array, kind in ((ids, np.dtype(dtype)), (column.offsets, _OFFSET))
    )
    position = _address(values) - whole.address
    if len(values) and not 0 <= position <= whole.size - values.nbytes:
        raise DataError(f"{path}: record batches are compressed, they must be plain; prepare the corpus again")
    return values, offsets, position


def _address(view: np.ndarray) -> int:
    return view.__array_interface__["data"][0]


def _check_schema(path: Path, schema: pa.Schema, dtype: str) -> None:
    kinds = [f"large_list<{kind.value_type}>" if pa.types.is_large_list(kind) else str(kind) for kind in schema.types]
    found = ", ".join(f"{name}: {kind}" for name, kind in zip(schema.names, kinds, strict=True))
    _check_equal(path, "columns", found, f"tokens: large_list<{dtype}>")


def _check_file(path: Path, size: int) -> None:
    if path.is_symlink() or not path.is_file():  # a link leads out of what was prepared, and was hashed
        raise DataError(f"{path}: not there as a file of the corpus, the manifest names it; prepare the corpus again")
    _check_equal(path, "bytes", path.stat().st_size, size)


def _check_equal(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise DataError(f"{path}: {what} {found}, expected {expected}; {_REPAIR}")
