"""Readers that pretraining and fine-tuning share: text of any compression, JSON, data sets of the hub.

Parquet is in `parquet`. What is done with records is in `structured` and in `finetune.data.records`. Free of torch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pretrain.data.sources import compression
from pretrain.data.sources.bad_records import BadRecordError
from pretrain.data.sources.content import Check, check_content
from pretrain.data.sources.locations import data_set_files, open_raw, suffixes
from pretrain.errors import ConfigError, DataError, HeadwaterError

log = logging.getLogger(__name__)

JSON_LINES = (".jsonl", ".ndjson", ".json")
TEXTS = (".txt", ".csv", ".tsv", *JSON_LINES)
DATA = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow")
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
    """Return what `datasets.load_dataset` makes of a hub name or a directory, also one of `save_to_disk`.

    Raises `ConfigError`, which begins with `label` and repeats the `hint`, for one that cannot be read.
    """
    from datasets import load_dataset

    saved = any(Path(path, name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if Path(path).is_dir() and not saved:
            _check_folder(path, config)
        return _load_saved(path, **options) if saved else load_dataset(path, config, **options)
    except HeadwaterError:
        raise
    except Exception as error:  # names, connections, disks, formats: each from a library of its own
        raise ConfigError(f"{label}: cannot be read as a data set{hint}: {' '.join(str(error).split())}") from error


def _check_folder(path: str, config: str | None) -> None:
    """Refuse what `datasets` would misread in a folder or read outside of it, and log what it would leave out."""
    from datasets import load_dataset_builder

    names = [entry.name for entry in data_set_files(path)]
    for name in names:
        if file_format(name) in TEXTS:
            with open_bytes(name):  # raises for what is no text in UTF-8
                pass
    by_split = load_dataset_builder(path, config).config.data_files or {}
    used = {Path(os.path.normpath(file)) for files in by_split.values() for file in files}
    if outside := sorted(file for file in used if not file.is_relative_to(Path(path).absolute())):
        raise ConfigError(f"{path}: its card names {outside[0]}, which is outside of it; put the file into the folder")
    left = [name for name in names if file_format(name) in DATA and Path(name).absolute() not in used]
    if left:
        log.warning("%s: `datasets` does not read %d of its files, such as %s", path, len(left), left[0])


def _load_saved(path: str, *, split: str | None = None, streaming: bool = False, revision: str | None = None) -> Any:
    """Return what was saved as a directory: of its files those that it lists, for others may be older, or a cache's."""
    from datasets import Dataset, load_from_disk

    found: Any = load_from_disk(path)
    if split and not isinstance(found, Dataset):
        if split not in found:
            raise ValueError(f"there is no split {split}, only {', '.join(found)}")
        found = found[split]
    if not streaming:
        return found
    return found.to_iterable_dataset(num_shards=max(1, min(len(found.cache_files), len(found))))
