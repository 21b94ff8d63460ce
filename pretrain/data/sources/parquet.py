"""Parquet files: opened, checked by their content, and read a few rows at a time, also fields within structs.

What is done with the values is in `structured` and in `finetune.data.records`. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from pretrain.data.sources.compression import BLOCK
from pretrain.data.sources.content import unlike_parquet
from pretrain.data.sources.locations import open_raw
from pretrain.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROWS = 256  # decoded at a time


@contextmanager
def open_parquet(file: str) -> Iterator[ParquetFile]:
    """Open a Parquet file. Raises `DataError` for one that cannot be read or is something else, which it names."""
    from pyarrow.parquet import ParquetFile

    try:
        with open_raw(file) as raw:
            if wrong := unlike_parquet(raw.read(BLOCK)):
                raise DataError(f"{file}: no Parquet file but {wrong}")
            with ParquetFile(raw, pre_buffer=False) as table:
                yield table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}); restore it or leave it out") from None


def column_paths(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the path of each column and of each field within structs, by its names joined with dots.

    Where a column has a name with dots itself, the name stands for the column.
    """
    paths: dict[str, list[str]] = {}
    waiting: list[tuple[list[str], pa.Field]] = [([], field) for field in schema]
    for above, field in waiting:  # grows: columns come first, then the fields within them
        path = [*above, field.name]
        paths.setdefault(".".join(path), path)
        if pa.types.is_struct(field.type):
            waiting += [(path, inner) for inner in field.type]
    return paths


def column_names(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, and of all fields within them, joined with dots."""
    return schema.names + [name for name in column_paths(schema) if name not in schema.names]


def column_type(schema: pa.Schema, name: str) -> pa.DataType:
    """Return the type of a column or of a field within columns."""
    column, *inner = column_paths(schema)[name]
    kind = schema.field(column).type
    for field in inner:
        kind = kind.field(field).type
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of a type holds strings or bytes, in any of Arrow's layouts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if isinstance(kind, pa.JsonType):
        return True
    types = pa.types
    strings = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_of(kind) for is_of in strings + binaries)


def parquet_batches(
    table: ParquetFile, names: list[str], groups: range | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the number of the first row, counted from 0, and a batch of rows, of some row groups or of all.

    A batch has a column for each of `names`, which are among `column_names`, in their order.
    """
    paths = [column_paths(table.schema_arrow)[name] for name in names]
    stored = [".".join(path) for path in paths]
    groups = range(table.num_row_groups) if groups is None else groups
    row = sum(table.metadata.row_group(group).num_rows for group in range(groups.start))
    for group in groups:  # one at a time: Arrow cannot join the dictionaries of fields within structs
        for batch in table.iter_batches(ROWS, row_groups=[group], columns=stored):
            columns = [_field(batch.column(column), inner) for column, *inner in paths]
            yield row, pa.RecordBatch.from_arrays(columns, names)
            row += batch.num_rows


def _field(column: pa.Array, inner: list[str]) -> pa.Array:
    for name in inner:
        assert isinstance(column, pa.StructArray)
        column = column.flatten()[column.type.get_field_index(name)]  # null where the struct is
    return column
