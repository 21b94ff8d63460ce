"""Names of classes that data sets keep beside their numbers: the `ClassLabel`s of the `datasets` library.

Parquet files have them as JSON in the metadata of their schema, data sets of the library in their features. They are
data: nothing of them is more than read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pretrain.data.sources.bad_records import BadRecordError
from pretrain.errors import DataError

METADATA = b"huggingface"  # key of the schema's metadata
UNLABELLED = -1  # stands where a label is not known, as in published test sets

Classes = Mapping[str, tuple[str, ...]]  # names in the order of their numbers, by column or by role
NO_CLASSES: Classes = MappingProxyType({})


def parquet_classes(file: str, schema: pa.Schema) -> Classes:
    """Return the names of classes in a Parquet file's metadata. Raises `DataError` for metadata that are damaged."""
    try:
        found = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
        return feature_classes(found.get("info", {}).get("features") or {})
    except (ValueError, RecursionError, AttributeError) as error:
        rule = f"names of classes in its metadata {METADATA.decode()!r} cannot be read ({error})"
        raise DataError(f"{file}: {rule}; write it anew, or without these") from None


def feature_classes(features: Mapping[str, Any]) -> Classes:
    """Return the names of classes in features of `datasets`, given as its JSON; of fields by names joined with dots.

    Raises `ValueError` for broken ones.
    """
    found: dict[str, tuple[str, ...]] = {}
    for column, kind in features.items():
        feature = _innermost(kind)
        if not isinstance(feature, dict):
            continue
        if "_type" not in feature and feature is kind:  # a record of several
            found |= {f"{column}.{field}": names for field, names in feature_classes(feature).items()}
        if feature.get("_type") != "ClassLabel" or not (names := feature.get("names")):
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"column {column!r}: {names!a:.80} is no list of names")
        if len(set(names)) < len(names):
            raise ValueError(f"column {column!r}: a name twice in {names!a:.80}")
        found[column] = tuple(names)
    return found


def _innermost(feature: Any) -> Any:
    """Return the feature of what is in a list, or in lists of lists; any other as it is."""
    if isinstance(feature, list) and len(feature) == 1:  # how older versions wrote a list
        return _innermost(feature[0])
    if isinstance(feature, dict) and "_type" in feature and "feature" in feature:
        return _innermost(feature["feature"])
    return feature


def class_name(value: Any, names: tuple[str, ...]) -> Any:
    """Return the name of a class's number, a list of them for a list, None for `UNLABELLED`; other values as they are.

    Raises `BadRecordError` for a number without a name.
    """
    if isinstance(value, list):
        return [class_name(one, names) for one in value]
    if not isinstance(value, int):
        return value
    if value == UNLABELLED:
        return None
    if not 0 <= value < len(names):
        raise BadRecordError("class without a name", f"{value}, there are {len(names)} names")
    return names[value]
