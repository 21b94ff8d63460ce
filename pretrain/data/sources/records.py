"""Sources of records that hold their text in one field: JSON lines, Parquet, data sets of the hub.

Holds their reading; the base and the sources of plain text are in `sources`. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pretrain.data.sources.base import FileSource, Input, ReadableSource, Span, byte_spans, file_input
from pretrain.data.sources.documents import OnInvalid, Problems, Raw, decode, lines, open_bytes
from pretrain.errors import ConfigError, DataError, check
from pretrain.registry import register

if TYPE_CHECKING:
    from datasets import IterableDataset
    from pyarrow.parquet import ParquetFile

PARQUET_ROWS = 256  # rows decoded at a time


@register("source", "jsonl")
@dataclass(kw_only=True)
class JsonLinesSource(FileSource):
    """JSON lines: one object a line, its text in one field. Also compressed."""

    field: str = "text"  # key of the text in each object

    def spans(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[Span, int]]:
        return byte_spans(inputs, unit_bytes, divisible=True)

    def read(self, span: Span, problems: Problems) -> Iterator[Raw]:
        good, fault = 0, ""
        with open_bytes(span.file) as stream:
            for line in lines(stream, *span):
                if not line.data or (text := decode(line, problems)) is None:
                    continue
                try:
                    value = self._value(text)
                except _BadRecordError as bad:
                    fault = fault or f"{line.place()}: {bad}"
                    problems.report(bad.reason, _place(line, problems), str(bad))
                    continue
                good += 1
                # An escaped lone surrogate is no text: encoded, it is invalid UTF-8 and meets the same policy.
                yield line._replace(data=value.encode(errors="surrogatepass"))
        if fault and not good and problems.policy is not OnInvalid.skip:
            raise DataError(
                f"{fault}; no line after it is better: correct data.sources.*.field={self.field} or the file, or leave "
                "such files out with data.prepare.on_invalid=skip"
            )

    def _value(self, text: str) -> str:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _BadRecordError("bad_json", f"not JSON ({error})") from None
        if not isinstance(record, dict):
            raise _BadRecordError("bad_json", f"a JSON {type(record).__name__}, expected an object")
        if self.field not in record:
            raise _BadRecordError("missing_field", f"no field {self.field!r}, there are {sorted(record)}")
        if not isinstance(value := record[self.field], str):
            raise _BadRecordError("missing_field", f"field {self.field!r} is {value!r:.40}, expected a string")
        return value


class _BadRecordError(Exception):
    """A line that holds no text: the reason it is counted under, and the rule that it breaks."""

    def __init__(self, reason: str, rule: str) -> None:
        super().__init__(rule)
        self.reason = reason


@register("source", "parquet")
@dataclass(kw_only=True)
class ParquetSource(FileSource):
    """Parquet files: one row a document, its text in one column."""

    field: str = "text"  # column of the text

    def spans(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[Span, int]]:
        for entry in inputs:
            with open_parquet(entry.name) as table:
                self._check_column(entry.name, table.schema_arrow)
                for group in range(table.num_row_groups):
                    yield Span(entry.name, group, group + 1), table.metadata.row_group(group).total_byte_size

    def read(self, span: Span, problems: Problems) -> Iterator[Raw]:
        assert span.stop is not None
        with open_parquet(span.file) as table:
            groups = range(span.start, span.stop)
            row = sum(table.metadata.row_group(group).num_rows for group in range(span.start))
            for batch in table.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[self.field]):
                for value in batch.column(0).cast(pa.large_binary()).to_pylist():
                    if value is None:
                        problems.report("missing_field", f"{span.file}: row {row}", f"column {self.field!r} is null")
                    else:
                        yield Raw(value, span.file, row, "row")
                    row += 1

    def _check_column(self, file: str, schema: pa.Schema) -> None:
        if self.field not in schema.names:
            rule = f"data.sources.*.field must be one of {sorted(schema.names)}"
            raise DataError(f"{file}: no column {self.field!r}; {rule}")
        kind = schema.field(self.field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
            raise DataError(f"{file}: column {self.field!r} is {kind}, expected strings; correct data.sources.*.field")


@register("source", "hub")
@dataclass(kw_only=True)
class HubSource(ReadableSource):
    """A data set that the `datasets` library can stream: a hub name, or a directory that it understands."""

    path: str = ""  # name on the hub, or a local directory
    config: str | None = None  # configuration of the data set, where it has several
    split: str = "train"  # split of the data set
    field: str = "text"  # column of the text
    revision: str | None = None  # commit on the hub; without it the data may change between two preparations

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.path), "data.sources.*.path", repr(self.path), "name a data set of the hub or a directory")

    def inputs(self) -> list[Input]:
        directory = Path(self.path)
        if not directory.is_dir():
            return []
        return [file_input(path, path) for path in sorted(directory.rglob("*")) if path.is_file()]

    def spans(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[Span, int]]:
        for shard in range(self._stream().num_shards):
            yield Span(self.path, shard, shard + 1), unit_bytes

    def read(self, span: Span, problems: Problems) -> Iterator[Raw]:
        stream = self._stream()
        for row, record in enumerate(stream.shard(stream.num_shards, span.start)):
            place = f"{self.path}, split {self.split}, shard {span.start}"
            if self.field not in record:
                rule = f"data.sources.*.field must be one of {sorted(record)}"
                raise DataError(f"{place}: no column {self.field!r}; {rule}")
            value = record[self.field]
            if isinstance(value, str):
                yield Raw(value.encode(errors="surrogatepass"), place, row, "row")
            else:
                problems.report("missing_field", f"{place}: row {row}", f"column {self.field!r} is {value!r:.40}")

    def _stream(self) -> IterableDataset:
        return _hub_stream(self.path, self.config, self.split, self.revision)


@lru_cache(maxsize=1)
def _hub_stream(path: str, config: str | None, split: str, revision: str | None) -> IterableDataset:
    """Open a data set once a process: finding its files can take many requests."""
    from datasets import load_dataset

    try:
        return load_dataset(path, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.sources.*.path={path} (config {config}, split {split}): {error}") from error


@contextmanager
def open_parquet(file: str) -> Iterator[ParquetFile]:
    """Open a Parquet file. Raises `DataError` for one that cannot be read."""
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}); restore it or leave it out") from None


def _place(line: Raw, problems: Problems) -> str:
    """Name the file and, where it will be shown, the number of a line."""
    if problems.policy is not OnInvalid.fail:
        return line.place()
    with open_bytes(line.file) as stream:
        number = 1
        left = line.start
        while left and (chunk := stream.read(min(left, 2**20))):
            number += chunk.count(b"\n")
            left -= len(chunk)
    return f"{line.file}: line {number}"
