"""A first look at a source before its text is prepared: its units, how it is held out, and what is refused at once.

Reads a few documents, all only of a source that has few; what is done with them is in `encode`. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import NamedTuple

from pretrain.data.prepare.cache_key import SourceInputs
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.held_out import HeldOut, is_held_out
from pretrain.data.prepare.repetition import REASON
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.base import Input, ReadableSource, Unit
from pretrain.data.sources.remote import is_remote
from pretrain.errors import DataError

SMALLEST_UNIT, LARGEST_UNIT = 2**20, 2**27  # bytes of input
UNITS = 64  # that a corpus is cut into, between those sizes
OPENED, OPENED_BYTES = 1000, 2**28  # local files, and bytes of them, that are looked into at most
FRAME = 2  # tokens around a document, at most, that are no text


class Least(NamedTuple):
    """The tokens that a source must have in each split."""

    train: int = 1
    validation: int = 1


class Survey(NamedTuple):
    """What is known of a source before the work."""

    units: list[Unit]
    held_out: HeldOut
    documents: int | None  # how many there are; None where not all were looked at

    def described(self, name: str, text: SourceInputs) -> str:
        """Say in one line what the documents of a source are and which text of them is held out."""
        files = f"{len(text.inputs):,} file{'s' * (len(text.inputs) != 1)}, " if text.inputs else ""
        what = f"{name}: {files}a document is a {text.source.document}"
        share = f"{100 * self.held_out.fraction:g} %"
        if not self.held_out.fraction:
            return f"{what}; nothing is held out"
        if not self.held_out.by_position:
            return f"{what}; {share} of the documents are held out"
        which = "each" if self.documents is None else f"each of the {self.documents:,}"
        return f"{what}; the last {share} of {'it' if self.documents == 1 else which} is held out"


def plan_units(source: ReadableSource, inputs: list[Input], unit_bytes: int) -> list[Unit]:
    """Cut a source into units, by their size in bytes or, if that is 0, into about UNITS of them."""
    total = sum(entry.size for entry in inputs)
    return source.units(inputs, unit_bytes or min(max(total // UNITS, SMALLEST_UNIT), LARGEST_UNIT))


def survey(name: str, text: SourceInputs, cfg: PrepareConfig, least: Least) -> Survey:
    """Look at the source called `name`: at documents until it is known how they are held out, and into files.

    Parts of long texts, and documents that are too few to hold out whole ones, are divided by position. Raises
    `DataError` for files that are not what the source reads, and for text that is certain to be too little.
    """
    source = text.source
    units = plan_units(source, text.inputs, cfg.unit_bytes)
    bad = BadRecords(policy=cfg.on_invalid)
    by_position, fraction = source.in_parts, cfg.held_out
    documents = size = 0
    held = {True: 0, False: 0}  # by position -> bytes
    known = False
    for document in chain.from_iterable(source.texts(unit, bad) for unit in units):
        data = document.encode()
        documents, size = documents + 1, size + len(data)
        held[True] += int(len(data) * fraction)
        held[False] += len(data) * is_held_out(data, fraction)
        known = by_position or not fraction or (documents * fraction >= 1 and 0 < held[False] < size)
        enough = size - held[by_position] >= least.train and (held[by_position] >= least.validation or not fraction)
        if known and enough:
            break
    else:
        by_position = by_position or not known
        if not documents:
            raise no_text(f"data.sources.{name}", bad.counts, cfg)
        _check_size(name, size, held[by_position], FRAME * documents, fraction, least)
        return Survey(units, HeldOut(fraction, by_position), documents)
    _look_into_files(text, units, bad)
    return Survey(units, HeldOut(fraction, by_position), None)


def no_text(source: str, left_out: Mapping[str, int], cfg: PrepareConfig, *, where: str = "it") -> DataError:
    """Return the refusal of a source without any document, `where` it needs some; `left_out` counts by reason."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(left_out.items()))
    fix = "check its files and field" if where == "it" else f"lower data.prepare.held_out={cfg.held_out}, or add text"
    if REASON in left_out:
        fix = f"raise data.prepare.max_repeats={cfg.max_repeats}, or {fix}"
    return DataError(f"{source}: no text in {where} (left out: {reasons or 'white space'}); {fix}")


def _check_size(name: str, size: int, held: int, frames: int, fraction: float, least: Least) -> None:
    """Refuse text of `size` bytes, `held` of them held out, that is too little even if each byte is a token.

    `frames` are the tokens around documents.
    """
    slot = f"fewer than one slot of data.seq_len={least.train} tokens"
    if size - held + frames < least.train:
        rule = f"{size - held:,} bytes of text to train on, {slot}; lower data.seq_len or add text"
        raise DataError(f"data.sources.{name}: {rule}")
    if fraction and (not held or held + frames < least.validation):
        rule = f"{held:,} of the {size:,} bytes of text of data.sources.{name} are held out, {slot}"
        fix = "raise it (0 for no validation), lower data.seq_len, or add text"
        raise DataError(f"data.prepare.held_out={fraction}: {rule}; {fix}")


def _look_into_files(text: SourceInputs, units: list[Unit], bad: BadRecords) -> None:
    """Read the first document of local files, of many of them some. Raises `DataError` for one that is not right."""
    local = {entry.name for entry in text.inputs if not is_remote(entry.name)}
    first = [part for unit in units for part in unit if part.start == 0 != part.stop and part.file in local]
    left = OPENED_BYTES
    for part in first[:: -(-len(first) // OPENED) or 1]:
        left -= sum(len(document) for document in islice(text.source.texts([part], bad), 1))
        if left < 0:
            break
