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
    """Return the names of classes in features of `datasets`, given as its JSON. Raises `ValueError` for broken ones."""
    found = {}
    for column, feature in features.items():
        names = _names(feature)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"column {column!r}: {names!a:.80} is no list of names")
        if len(set(names)) < len(names):
            raise ValueError(f"column {column!r}: a name twice in {names!a:.80}")
        if names:
            found[column] = tuple(names)
    return found


def _names(feature: Any) -> Any:
    """Return the names of a feature of classes, or of lists of them; none for any other."""
    if isinstance(feature, list) and len(feature) == 1:  # how older versions wrote a list
        return _names(feature[0])
    if not isinstance(feature, dict):
        return []
    if "feature" in feature:
        return _names(feature["feature"])
    return feature.get("names") or [] if feature.get("_type") == "ClassLabel" else []


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
