"""Schemes of tags: which tags there are, and how entities are spelt with them.

Holds the rules; measuring entities is in `entities`.
"""

from __future__ import annotations

import re
from enum import StrEnum

OUTSIDE = "O"  # the tag of words that are in no entity


class TagScheme(StrEnum):
    """How tags mark where an entity begins and ends."""

    none = "none"  # they mark none, each stands for itself: parts of speech
    bio = "bio"  # O, B- begins, I- goes on (IOB2)
    bioes = "bioes"  # O, B- begins, I- goes on, E- ends, S- is one word (IOBES)


_ALLOWED = {TagScheme.none: r".+", TagScheme.bio: r"O|[BI]-.+", TagScheme.bioes: r"O|[BIES]-.+"}


def fits(tag: str, scheme: TagScheme) -> bool:
    """Say whether this is a tag of the scheme."""
    return re.fullmatch(_ALLOWED[scheme], tag) is not None


def entity_spans(tags: list[str]) -> list[tuple[str, int, int]]:
    """Return the type, first and last word of each entity, read as `conlleval` does, and as `entity_metrics`."""
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities(tags)


def misspelt(tags: list[str], scheme: TagScheme) -> list[tuple[int, list[str]]]:
    """Return the first word and the tags of entities that the scheme would spell otherwise: an I- after O, say."""
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
