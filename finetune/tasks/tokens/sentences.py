"""Sentences of words with tags: what is made of a record, or why it is left out.

Holds the checks; reading records is in `records` and `conll`, what tags there are in `tagging`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune.data.records import Record
from finetune.tasks.tokens.tags import TagScheme, fits


class Sentence(NamedTuple):
    """Words, and what is known of them."""

    words: list[str]
    tags: list[str] | None  # as many; None: not known
    place: str  # file and line, or row
    lines: range | None = None  # of its words, where each has its own

    def place_of(self, word: int) -> str:
        """Return the file and line of a word, or the place of the sentence and the word's number, from 1."""
        if self.lines is None:
            return f"{self.place}, word {word + 1}"
        return f"{self.place.rpartition(':')[0]}:{self.lines[word]}"


class Bad(NamedTuple):
    """Why a record is left out, as `BadRecords.report` takes it."""

    reason: str
    place: str
    detail: str


def to_sentence(record: Record, scheme: TagScheme, labels: list[str]) -> Sentence | Bad:
    """Return a sentence of a record's `words` and `tags`, if it has any; tags may be places in `labels`."""
    words, tags = record.values["words"], record.values.get("tags")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return Bad("no list of words", record.place, ascii(words)[:80])
    if not words:
        return Bad("no words", record.place, "an empty list")
    if "tags" not in record.values:
        return Sentence(words, None, record.place, record.values.get("lines"))
    if not isinstance(tags, list):
        return Bad("no list of tags", record.place, ascii(tags)[:80])
    if len(tags) != len(words):
        return Bad("words and tags differ in number", record.place, f"{len(words)} and {len(tags)}")
    named = [_name(tag, labels) for tag in tags]
    sentence = Sentence(words, named, record.place, record.values.get("lines"))
    for word, tag in enumerate(named):
        if not isinstance(tag, str) or not fits(tag, scheme):
            return Bad(f"no tag of task.scheme={scheme}", sentence.place_of(word), f"{tag!r:.40}")
    return sentence


def _name(tag: Any, labels: list[str]) -> Any:
    return labels[tag] if type(tag) is int and 0 <= tag < len(labels) else tag
