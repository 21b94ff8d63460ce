"""Readers that pretraining and fine-tuning share: text of any compression, JSON, data sets of the hub.

Parquet is in `parquet`. What is done with records is in `structured` and in `finetune.data.records`. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pretrain.data.sources import compression
from pretrain.data.sources.bad_records import BadRecordError
from pretrain.data.sources.content import Check, check_content
from pretrain.data.sources.locations import data_set_files, open_raw, suffixes
from pretrain.errors import ConfigError, DataError

JSON_LINES = (".jsonl", ".ndjson", ".json")
LONG_WINDOW = "Frame requires too much memory"  # Arrow's words, for more than 128 MiB


def file_format(file: str) -> str:
    """Return the suffix that says what a file holds (".csv" for a.CSV.gz), or "" if there is none."""
    found = [suffix.lower() for suffix in reversed(suffixes(file))]
    return next((suffix for suffix in found if suffix not in compression.SUFFIXES), "")


@contextmanager
def open_bytes(file: str, *checks: Check) -> Iterator[BinaryIO]:
    """Open a file of UTF-8 text, decompressed by its content, with its byte order mark if it has one.

    Raises `DataError` naming a file that cannot be read, and `ForeignFile` for one that is something else than text or
    that one of the `checks` refuses.
    """
    try:
        with open_raw(file) as raw, compression.decompressed(raw) as stream:
            check_content(file, stream.peek(compression.BLOCK), *checks)
            yield stream
    except compression.ERRORS as error:
        fix = "restore the file or leave it out of the source"
        if LONG_WINDOW in str(error):
            fix = "decompress it, for example with zstd -d --long=31, or compress it without --long"
        raise DataError(f"{file}: cannot be read ({error}); {fix}") from error


def is_compressed(file: str) -> bool:
    """Return whether a file is compressed, by its first bytes. Raises `DataError` if it cannot be read."""
    try:
        with open_raw(file) as raw:
            return compression.is_compressed(raw.read(compression.SIGNATURE_BYTES))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); restore the file or leave it out of the source") from error


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object on a line. Raises `BadRecordError` for anything else."""
    try:
        value = json.loads(text.removeprefix("\ufeff"))  # on any line, if files were joined
    except (ValueError, RecursionError) as error:
        raise BadRecordError("not JSON", str(error)) from None
    if not isinstance(value, dict):
        raise BadRecordError("no JSON object (one a line, no list around them)", ascii(value)[:80])
    return value


def value_at(record: dict[str, Any], name: str) -> Any:
    """Return the value of a key or, if there is no such key, of nested objects by their keys, joined by dots.

    Raises `KeyError` if there is neither.
    """
    if name in record:
        return record[name]
    for dot in (at for at, sign in enumerate(name) if sign == "."):
        if isinstance(inner := record.get(name[:dot]), dict):
            with suppress(KeyError):
                return value_at(inner, name[dot + 1 :])
    raise KeyError(name)


def load_data_set(label: str, path: str, config: str | None, *, hint: str = "", **options: Any) -> Any:
    """Return what `datasets.load_dataset` makes of a hub name or a directory.

    Raises `ConfigError`, which begins with `label` and repeats the `hint`, for one that cannot be read.
    """
    from datasets import load_dataset

    if Path(path).is_dir():
        data_set_files(path)  # refuses what `datasets` would misread
    try:
        return load_dataset(path, config, **options)
    except Exception as error:  # names, connections, disks, formats: each from a library of its own
        raise ConfigError(f"{label}: cannot be read as a data set{hint}: {' '.join(str(error).split())}") from error
