"""Sentences of words with tags: the schemes of tags, and the sentence that a record holds if it is a good one.

Files are read by `conll` and `finetune.data`; entities are measured in `metrics`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from finetune.data.records import Record
from finetune.tasks.tokens.metrics import entity_spans
from pretrain.data.sources.bad_records import BadRecordError

OUTSIDE = "O"  # the tag of words that are in no entity


class TagScheme(StrEnum):
    """How tags mark where an entity starts and ends."""

    none = "none"  # not at all, each tag stands for itself: parts of speech
    bio = "bio"  # O, B- for the first word of an entity, I- for the others (IOB2)
    bioes = "bioes"  # also E- for the last word, S- for a single one (IOBES)


_ALLOWED = {TagScheme.none: r".+", TagScheme.bio: r"O|[BI]-.+", TagScheme.bioes: r"O|[BIES]-.+"}


class Sentence(NamedTuple):
    """Words and their tags."""

    words: list[str]
    tags: list[str] | None  # as many; None: not known
    place: str  # file and line, or row
    lines: range | None = None  # of its words, where each has its own

    def place_of(self, word: int) -> str:
        """Return the file and line of a word, or the place of the sentence and the word's number, from 1."""
        if self.lines is None:
            return f"{self.place}, word {word + 1}"
        return f"{self.place.rpartition(':')[0]}:{self.lines[word]}"


def to_sentence(record: Record, scheme: TagScheme, labels: list[str]) -> Sentence:
    """Return the sentence of a record's `words` and, if it has any, `tags`, which may be indices into `labels`.

    Raises `BadRecordError` for what is not a list of words with as many tags of the scheme.
    """
    words, tags = record.values["words"], record.values.get("tags")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadRecordError("no list of words", ascii(words)[:80])
    if not words:
        raise BadRecordError("no words", "an empty list")
    sentence = Sentence(words, None, record.place, record.values.get("lines"))
    if "tags" not in record.values:
        return sentence
    if not isinstance(tags, list):
        raise BadRecordError("no list of tags", ascii(tags)[:80])
    if len(tags) != len(words):
        raise BadRecordError("words and tags differ in number", f"{len(words)} and {len(tags)}")
    names = [labels[tag] if type(tag) is int and 0 <= tag < len(labels) else tag for tag in tags]
    for word, tag in enumerate(names):
        if not isinstance(tag, str) or not is_tag(tag, scheme):
            raise BadRecordError(f"no tag of task.scheme={scheme}", f"{tag!r:.40}", sentence.place_of(word))
    return sentence._replace(tags=names)


def is_tag(tag: str, scheme: TagScheme) -> bool:
    """Say whether this is a tag of the scheme."""
    return re.fullmatch(_ALLOWED[scheme], tag) is not None


def misspelled(tags: list[str], scheme: TagScheme) -> list[tuple[int, list[str]]]:
    """Return the first word and the tags of each entity that the scheme spells otherwise: an I- after O, say."""
    if scheme is TagScheme.none:
        return []
    found = []
    for kind, first, last in entity_spans(tags):
        own = tags[first : last + 1]
        if own != [f"{letter}-{kind}" for letter in _letters(len(own), scheme)]:
            found.append((first, own))
    return found


def _letters(length: int, scheme: TagScheme) -> str:
    """Return how the scheme spells an entity of so many words."""
    if scheme is TagScheme.bio:
        return "B" + "I" * (length - 1)
    return "S" if length == 1 else "B" + "I" * (length - 2) + "E"
