"""All texts of a source, as preparing a corpus reads them."""

from pretrain.data.sources.bad_records import BadRecords, OnInvalid
from pretrain.data.sources.base import ReadableSource


def read(source: ReadableSource, unit_bytes=2**20, on_invalid=OnInvalid.replace) -> tuple[list[str], dict[str, int]]:
    """All texts of a source, and what was counted."""
    bad = BadRecords(policy=on_invalid)
    units = source.units(source.inputs(), unit_bytes)
    return [text for unit in units for text in source.texts(unit, bad)], dict(bad.counts)
