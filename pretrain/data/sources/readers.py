"""Readers of files and data sets: compression, JSON lines, Parquet, data sets of the hub.

Holds what pretraining and fine-tuning read alike: what kind of file a name stands for and how each kind is opened. What
is done with records is in `structured` and in `finetune.data.records`. Free of torch.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from pretrain.data.sources.bad_records import BadRecordError
from pretrain.data.sources.locations import data_set_files, open_raw, suffixes
from pretrain.errors import ConfigError, DataError, HeadwaterError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET_ROWS = 256  # rows decoded at a time


def _open_zstd(raw: BinaryIO) -> Any:
    return io.BufferedReader(pa.input_stream(raw, compression="zstd"))  # reads concatenated frames as one stream


COMPRESSED: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}


def file_format(file: str) -> str:
    """Return the suffix that says what a file holds (".csv" for a.csv.gz), or "" if there is none."""
    return next((suffix for suffix in reversed(suffixes(file)) if suffix not in COMPRESSED), "")


@contextmanager
def open_bytes(file: str) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed by its suffix. Raises `DataError` naming it if it cannot be read."""
    try:
        opener = COMPRESSED.get(Path(file).suffix)
        with open_raw(file) as raw, opener(raw) if opener else raw as stream:
            yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}); restore the file or leave it out of the source") from error


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object on a line. Raises `BadRecordError` for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("not JSON", str(error)) from None
    if not isinstance(value, dict):
        raise BadRecordError("no JSON object (one a line, no list around them)", ascii(value)[:80])
    return value


@contextmanager
def open_parquet(file: str) -> Iterator[ParquetFile]:
    """Open a Parquet file. Raises `DataError` for one that cannot be read."""
    from pyarrow.parquet import ParquetFile

    try:
        with open_raw(file) as raw, ParquetFile(raw, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}); restore it or leave it out") from None


def parquet_batches(
    table: ParquetFile, columns: list[str], groups: range | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the number of the first row, counted from 0, and a batch of rows, of some row groups or of all."""
    groups = range(table.num_row_groups) if groups is None else groups
    row = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
    for batch in table.iter_batches(PARQUET_ROWS, row_groups=groups, columns=columns):
        yield row, batch
        row += batch.num_rows


def load_data_set(label: str, path: str, config: str | None, *, hint: str = "", **options: Any) -> Any:
    """Return what `datasets.load_dataset` makes of a hub name or a directory.

    Raises `ConfigError`, which begins with `label` and repeats the `hint`, for one that cannot be read.
    """
    from datasets import load_dataset

    if Path(path).is_dir():
        data_set_files(path)  # refuses what `datasets` would misread
    try:
        return load_dataset(path, config, **options)
    except HeadwaterError:  # the request to stop
        raise
    except Exception as error:  # names, connections, disks, formats: each from a library of its own
        raise ConfigError(f"{label}: cannot be read as a data set{hint}: {' '.join(str(error).split())}") from error
