"""Sources of records that hold their text in one field: JSON lines, Parquet, data sets of the hub.

Holds how records become documents; opening and parsing is in `readers`, plain text in `base`. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pretrain.data.sources.bad_records import BadRecordError, BadRecords, OnInvalid
from pretrain.data.sources.base import FileRange, FileSource, Input, ReadableSource, byte_ranges
from pretrain.data.sources.content import unlike_json_lines
from pretrain.data.sources.documents import Raw, decode, lines
from pretrain.data.sources.locations import data_set_files, has_parts
from pretrain.data.sources.parquet import column_names, column_type, is_text, open_parquet, parquet_batches
from pretrain.data.sources.readers import json_object, load_data_set, open_bytes, value_at
from pretrain.errors import DataError, check
from pretrain.registry import register
from pretrain.settings.paths import expanded

if TYPE_CHECKING:
    from datasets import IterableDataset


@register("source", "jsonl")
@dataclass(kw_only=True)
class JsonLinesSource(FileSource):
    """JSON lines: one object a line, its text in one field. Also compressed."""

    field: str = "text"  # key of the text in each object; meta.text for the key text of the object under meta

    def ranges(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[FileRange, int]]:
        return byte_ranges(inputs, unit_bytes, divisible=True)

    def read(self, part: FileRange, bad: BadRecords) -> Iterator[Raw]:
        num_good, first_bad = 0, ""
        with open_bytes(part.file, unlike_json_lines) as stream:
            for line in lines(stream, *part):
                if not line.data or (text := decode(line, bad)) is None:
                    continue
                try:
                    value = self._value(text)
                except BadRecordError as error:
                    bad.report(error.reason, _place(line, bad), str(error))
                    first_bad = first_bad or f"{line.place()}: {error}"
                else:
                    num_good += 1
                    # An escaped lone surrogate is no text: encoded, it is invalid UTF-8 and meets the same policy.
                    yield line._replace(data=value.encode(errors="surrogatepass"))
        if first_bad and not num_good and bad.policy is not OnInvalid.skip:
            raise DataError(
                f"{first_bad}; no line after it is better: correct data.sources.*.field={self.field} or the file, or "
                "leave such files out with data.prepare.on_invalid=skip"
            )

    def _value(self, line: str) -> str:
        """Return the text in the object on a line. Raises `BadRecordError` if there is none."""
        try:
            record = json_object(line)
        except BadRecordError as error:
            raise BadRecordError("bad_json", f"{error.reason} ({error})") from None
        try:
            value = value_at(record, self.field)
        except KeyError:
            raise BadRecordError("missing_field", f"no field {self.field!r}, there are {sorted(record)}") from None
        if not isinstance(value, str):
            raise BadRecordError("missing_field", f"field {self.field!r} is {value!r:.40}, expected a string")
        return value


@register("source", "parquet")
@dataclass(kw_only=True)
class ParquetSource(FileSource):
    """Parquet files: one row a document, its text in one column."""

    field: str = "text"  # column of the text; meta.text for the field text of a column of structs, meta

    def ranges(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[FileRange, int]]:
        for entry in inputs:
            with open_parquet(entry.name) as table:
                self._check_column(entry.name, table.schema_arrow)
                if not has_parts(entry.name):
                    yield FileRange(entry.name, 0, table.num_row_groups), entry.size
                    continue
                for group in range(table.num_row_groups):
                    yield FileRange(entry.name, group, group + 1), table.metadata.row_group(group).total_byte_size

    def read(self, part: FileRange, bad: BadRecords) -> Iterator[Raw]:
        assert part.stop is not None
        with open_parquet(part.file) as table:
            for first, batch in parquet_batches(table, [self.field], range(part.start, part.stop)):
                # As bytes, because Parquet's strings may hold invalid UTF-8, which the policy is for.
                for row, value in enumerate(batch.column(0).cast(pa.large_binary()).to_pylist(), first):
                    if value is None:
                        bad.report("missing_field", f"{part.file}: row {row}", f"column {self.field!r} is null")
                    else:
                        yield Raw(value, part.file, row, "row")

    def _check_column(self, file: str, schema: pa.Schema) -> None:
        names = column_names(schema)
        if (count := names.count(self.field)) != 1:
            what = f"{count} columns" if count else "no column"
            raise DataError(f"{file}: {what} {self.field!r}; data.sources.*.field must be one of {sorted(names)}")
        if not is_text(kind := column_type(schema, self.field)):
            raise DataError(f"{file}: column {self.field!r} is {kind}, expected strings; correct data.sources.*.field")


@register("source", "hub")
@dataclass(kw_only=True)
class HubSource(ReadableSource):
    """A data set that the `datasets` library can stream: a hub name, or a directory that it understands."""

    path: str = ""  # name on the hub, or a local directory
    config: str | None = None  # configuration of the data set, where it has several
    split: str = "train"  # split of the data set
    field: str = "text"  # column of the text; meta.text for the field text of a column of structs, meta
    revision: str | None = None  # commit on the hub; without it the data may change between two preparations

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.path), "data.sources.*.path", repr(self.path), "name a data set of the hub or a directory")

    def inputs(self) -> list[Input]:
        name = expanded(self.path, "data.sources.*.path")
        return data_set_files(name) if Path(name).is_dir() else []

    def ranges(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[FileRange, int]]:
        for shard in range(self._stream().num_shards):
            yield FileRange(self.path, shard, shard + 1), unit_bytes

    def read(self, part: FileRange, bad: BadRecords) -> Iterator[Raw]:
        stream = self._stream()
        place = f"{self.path}, split {self.split}, shard {part.start}"
        for row, record in enumerate(_records(stream.shard(stream.num_shards, part.start), place)):
            try:
                value = value_at(record, self.field)
            except KeyError:
                rule = f"data.sources.*.field must be one of {sorted(record)}"
                raise DataError(f"{place}: no column {self.field!r}; {rule}") from None
            if isinstance(value, str | bytes):
                data = value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
                yield Raw(data, place, row, "row")
            else:
                bad.report("missing_field", f"{place}: row {row}", f"column {self.field!r} is {value!r:.40}")

    def _stream(self) -> IterableDataset:
        return _hub_stream(expanded(self.path, "data.sources.*.path"), self.config, self.split, self.revision)


def _records(shard: IterableDataset, place: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a shard. Raises `DataError` for what the `datasets` library cannot read."""
    try:
        yield from shard
    except Exception as error:  # of connections, formats and encodings: each from a library of its own
        reason = " ".join(str(error).split())
        raise DataError(f"{place}: cannot be read ({reason}); mend the data set, or run again") from error


@lru_cache(maxsize=1)  # once a process: finding its files can take many requests
def _hub_stream(path: str, config: str | None, split: str, revision: str | None) -> IterableDataset:
    label = f"data.sources.*.path={path} (config {config}, split {split})"
    return load_data_set(label, path, config, split=split, revision=revision, streaming=True)


def _place(line: Raw, bad: BadRecords) -> str:
    """Name the file and, where it will be shown, the number of a line."""
    if bad.policy is not OnInvalid.fail:
        return line.place()
    with open_bytes(line.file) as stream:
        number = 1 + sum(1 for _ in lines(stream, line.file, 0, line.start))
    return f"{line.file}: line {number}"
