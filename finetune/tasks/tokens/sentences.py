"""Sentences of words with tags: the schemes of tags, and the sentence that a record holds if it is a good one.

Files are read by `conll` and `finetune.data`; entities are measured in `metrics`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from finetune.data.records import Record
from finetune.tasks.base import name_of_number
from finetune.tasks.tokens.metrics import entity_spans
from pretrain.data.sources.bad_records import BadRecordError

OUTSIDE = "O"  # the tag of words that are in no entity


class TagScheme(StrEnum):
    """How tags mark where an entity starts and ends: a letter before its type, or alone if there is one type."""

    auto = "auto"  # as the tags show, of the following ones
    bio = "bio"  # O, B- for the first word of an entity, I- for the others (IOB2)
    iob1 = "iob1"  # O, I- for the words of an entity; B- for the first if the word before is of another of its type
    bioes = "bioes"  # also E- for the last word, S- for a single one (IOBES)
    bilou = "bilou"  # these two are L- and U-
    none = "none"  # tags mark no entities, each stands for itself: parts of speech


_LETTERS = {
    TagScheme.auto: "BIESLU",
    TagScheme.bio: "BI",
    TagScheme.iob1: "BI",
    TagScheme.bioes: "BIES",
    TagScheme.bilou: "BILU",
}


class Sentence(NamedTuple):
    """Words and their tags."""

    words: list[str]
    tags: list[str] | None  # as many; None: not known
    place: str  # file and line, or row
    lines: Sequence[int] | None = None  # of its words, where each has its own
    classes: tuple[str, ...] = ()  # names of all tags in their order, if the data set has them

    def place_of(self, word: int) -> str:
        """Return the file and line of a word, or the place of the sentence and the word's number, from 1."""
        if self.lines is None:
            return f"{self.place}, word {word + 1}"
        return f"{self.place.rpartition(':')[0]}:{self.lines[word]}"


def to_sentence(record: Record, scheme: TagScheme, labels: Sequence[str]) -> Sentence:
    """Return the sentence of a record's `words` and, if it has any, `tags`, which may be indices into `labels`.

    Raises `BadRecordError` for what is not a list of words with as many tags of the scheme.
    """
    words, tags = record.values["words"], record.values.get("tags")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadRecordError("no list of words", ascii(words)[:80])
    if not words:
        raise BadRecordError("no words", "an empty list")
    sentence = Sentence(words, None, record.place, record.values.get("lines"), record.classes.get("tags", ()))
    if "tags" not in record.values:
        return sentence
    if not isinstance(tags, list):
        raise BadRecordError("no list of tags", ascii(tags)[:80])
    if len(tags) != len(words):
        raise BadRecordError("words and tags differ in number", f"{len(words)} and {len(tags)}")
    names = [name_of_number(tag, labels) if type(tag) is int else tag for tag in tags]
    for word, (name, tag) in enumerate(zip(names, tags, strict=True)):
        if not isinstance(name, str) or not is_tag(name, scheme):
            raise BadRecordError(f"no tag of task.scheme={scheme}", f"{tag!r:.40}{_fix(tag)}", sentence.place_of(word))
    return sentence._replace(tags=names)


def is_tag(tag: str, scheme: TagScheme) -> bool:
    """Say whether this is a tag of the scheme."""
    if scheme is TagScheme.none:
        return bool(tag)
    return tag == OUTSIDE or re.fullmatch(rf"[{_LETTERS[scheme]}](-.+)?", tag) is not None


def _fix(tag: object) -> str:
    """Return how to mend what is nearly a tag, for a message."""
    if type(tag) is int:
        return "; name the integers in task.labels, or choose task.scheme=none"
    if isinstance(tag, str) and re.fullmatch(r"o|[bieslu](-.+)?", tag):
        return "; write its letter as a capital"
    if isinstance(tag, str) and re.fullmatch(r".+-[BIESLU]", tag):
        return "; write its letter before the type"
    return ""


def scheme_of(sentences: Sequence[list[str]]) -> TagScheme:
    """Return the scheme in which the fewest entities are misspelled, of several the first as they are defined."""
    schemes = [TagScheme.bio, TagScheme.iob1, TagScheme.bioes, TagScheme.bilou]
    return min(schemes, key=lambda scheme: sum(len(misspelled(tags, scheme)) for tags in sentences))


def misspelled(tags: list[str], scheme: TagScheme) -> list[tuple[int, list[str]]]:
    """Return the first word and the tags of each entity that the scheme spells otherwise: an I- after O, say."""
    if scheme is TagScheme.none:
        return []
    found = []
    before = ("", -1, -1)
    for span in entity_spans(tags):
        kind, first, last = span
        letters = _letters(last - first + 1, scheme, follows=before[0] == kind and before[2] == first - 1)
        if [tag[0] for tag in tags[first : last + 1]] != list(letters):
            found.append((first, tags[first : last + 1]))
        before = span
    return found


def _letters(length: int, scheme: TagScheme, *, follows: bool) -> str:
    """Return how the scheme spells an entity of so many words; it may follow on another of its type."""
    if scheme in (TagScheme.bio, TagScheme.iob1):
        return ("I" if scheme is TagScheme.iob1 and not follows else "B") + "I" * (length - 1)
    last, single = "LU" if scheme is TagScheme.bilou else "ES"
    return single if length == 1 else "B" + "I" * (length - 2) + last
