"""What a report page says of tags of words: entities by type and by length of the sentence, the worst sentences.

Holds the sections; precision, recall and F1 of entities are `seqeval`'s, by `entities`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from finetune.report.confusion import by_label, confusion, confusion_picture, confusion_table
from finetune.report.figures import Panel, draw_bins
from finetune.report.page import LABEL_ROOM, WORST, Picture, Section, clipped, quantile_bins
from finetune.tasks.tokens.metrics import entity_metrics
from finetune.tasks.tokens.tags import entity_spans
from pretrain.report.markdown import literal, table

ELSEWHERE, MISSED, NONE = "other words", "missed", "no entity"  # columns and row of the confusion of entities
WORDS_BEFORE = 12  # words of a sentence that are shown before the first error
WORDS_SHOWN = 60  # of a sentence

Entity = tuple[str, int, int]  # type, first and last word


class Tagged(NamedTuple):
    """A sentence, its tags and those that a model gave it."""

    words: list[str]
    tags: list[str]  # as many
    predicted: list[str]  # as many
    place: str  # file and line


def of_entities(sentences: Sequence[Tagged], measured: Mapping[str, float]) -> list[Section]:
    """Return types, confusions, lengths and worst sentences; `measured` has the values of types, as `f1/PER`."""
    found = [(set(entity_spans(one.tags)), set(entity_spans(one.predicted))) for one in sentences]
    kinds = sorted({kind for pair in found for kind, *_ in itertools.chain(*pair)})
    if not kinds:
        return [Section("Types", ["There is no entity, neither in the data nor predicted."])]
    numbers = [Counter(kind for pair in found for kind, *_ in pair[side]) for side in (0, 1)]
    rows = [
        [
            clipped(kind, LABEL_ROOM),
            *(f"{measured[f'{name}/{kind}']:.3f}" for name in ("precision", "recall", "f1")),
            *(f"{counted[kind]:,}" for counted in numbers),
        ]
        for kind in kinds
    ]
    types = table(["type", "precision", "recall", "F1", "in the data", "predicted"], rows)
    counts, header = confused(found, kinds), [*kinds, ELSEWHERE, MISSED]
    told = (
        f"Rows are the entities of the data, columns those that are predicted for the same words; `{ELSEWHERE}`: only "
        f"ones that share some of the words; `{MISSED}`: none at all. The row `{NONE}` has what is predicted where "
        "nothing is."
    )
    parts = [confusion_picture(counts, [*kinds, NONE], header), told, confusion_table(counts, [*kinds, NONE], header)]
    wrong = [len(own ^ guess) for own, guess in found]
    return [
        Section("Types", [types]),
        Section("What is taken for what", parts),
        _by_length(sentences, "entity F1", _entity_f1),
        _worst(sentences, wrong, "entities that are missed, or should not be there", _with_entities),
    ]


def of_labels(sentences: Sequence[Tagged], names: Sequence[str]) -> list[Section]:
    """Return labels, confusions, lengths and worst sentences where each tag stands for itself."""
    labels = list(itertools.chain(*(one.tags for one in sentences)))
    predicted = list(itertools.chain(*(one.predicted for one in sentences)))
    names = list(dict.fromkeys([*names, *predicted]))  # words without a token have a tag that may be none of these
    numbers = {name: number for number, name in enumerate(names)}
    own, guess = (np.array([numbers[tag] for tag in tags]) for tags in (labels, predicted))
    wrong = [sum(tag != other for tag, other in zip(one.tags, one.predicted, strict=True)) for one in sentences]
    return [
        by_label(own, guess, names),
        confusion(own, guess, names),
        _by_length(sentences, "accuracy of words", _accuracy),
        _worst(sentences, wrong, "words with a wrong tag", _with_tags),
    ]


def confused(found: Sequence[tuple[set[Entity], set[Entity]]], kinds: Sequence[str]) -> np.ndarray:
    """Return how often entities of the data, the first of each pair, are predicted as what, the second.

    The counts (K+1, K+2) int64 are of K kinds: rows end with no entity, columns with other words and with missed.
    """
    counts = np.zeros((len(kinds) + 1, len(kinds) + 2), dtype=np.int64)
    numbers = {kind: number for number, kind in enumerate(kinds)}
    for own, guess in found:
        same = {(first, last): numbers[kind] for kind, first, last in guess}
        for kind, first, last in own:
            column = len(kinds) if any(_overlap((first, last), other) for other in same) else len(kinds) + 1
            counts[numbers[kind], same.get((first, last), column)] += 1
        for kind, first, last in guess:
            if not any(_overlap((first, last), (begin, end)) for _, begin, end in own):
                counts[-1, numbers[kind]] += 1
    return counts


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _by_length(sentences: Sequence[Tagged], what: str, measure: Callable[[list[Tagged]], float]) -> Section:
    bins = quantile_bins(np.array([len(one.words) for one in sentences]))
    values = [measure([sentences[at] for at in each.members]) for each in bins]
    sizes = [len(each.members) for each in bins]
    title = f"{what[0].upper()}{what[1:]} by words of the sentence"
    panel = Panel(title, [each.name for each in bins], sizes, {what: values})
    picture = Picture("by-length", title, lambda path: draw_bins([panel], path))
    rows = [
        [each.name, f"{size:,}", "–" if math.isnan(value) else f"{value:.3f}"]
        for each, size, value in zip(bins, sizes, values, strict=True)
    ]
    return Section("By length", [picture, table(["words of the sentence", "sentences", what], rows)])


def _entity_f1(sentences: list[Tagged]) -> float:
    tags, predicted = [one.tags for one in sentences], [one.predicted for one in sentences]
    if not any(entity_spans(sentence) for sentence in itertools.chain(tags, predicted)):
        return math.nan
    return entity_metrics(predicted, tags)["f1"]


def _accuracy(sentences: list[Tagged]) -> float:
    pairs = [pair for one in sentences for pair in zip(one.tags, one.predicted, strict=True)]
    return sum(tag == guess for tag, guess in pairs) / len(pairs)


def _worst(
    sentences: Sequence[Tagged], wrong: Sequence[int], what: str, show: Callable[[list[str], list[str]], list[str]]
) -> Section:
    """Return the sentences with the most errors, `wrong` of each; `show` renders words with their tags."""
    order = sorted((at for at, errors in enumerate(wrong) if errors), key=lambda at: -wrong[at])
    if not order:
        return Section("Worst sentences", ["There is none."])
    told = (
        f"{len(order):,} of {len(sentences):,} sentences have {what}: {sum(wrong):,} in all. "
        "Sentences with the most come first."
    )
    items = []
    for place, at in enumerate(order[:WORST], 1):
        one = sentences[at]
        errors = f"{wrong[at]:,} {'error' if wrong[at] == 1 else 'errors'}"
        first = next(n for n, (tag, guess) in enumerate(zip(one.tags, one.predicted, strict=True)) if tag != guess)
        rendered = [_stretch(show(one.words, tags), first) for tags in (one.tags, one.predicted)]
        items.append(
            f"{place}. {literal(one.place)}, {errors}\n    - in the data: {rendered[0]}\n    - predicted: {rendered[1]}"
        )
    return Section("Worst sentences", [told, "\n\n".join(items)])


def _stretch(words: list[str], first: int) -> str:
    """Return some words, from shortly before the first error on."""
    start = max(first - WORDS_BEFORE, 0)
    left, right = "… " * (start > 0), " …" * (start + WORDS_SHOWN < len(words))
    return f"{left}{' '.join(words[start : start + WORDS_SHOWN])}{right}"


def _with_entities(words: list[str], tags: list[str]) -> list[str]:
    """Return words as Markdown, with entities in bold before their types."""
    shown = [clipped(word) for word in words]
    for kind, first, last in entity_spans(tags):
        shown[first] = f"<b>{shown[first]}"  # asterisks next to quotes are no emphasis
        shown[last] = f"{shown[last]}</b> ({clipped(kind, LABEL_ROOM)})"
    return shown


def _with_tags(words: list[str], tags: list[str]) -> list[str]:
    """Return words as Markdown, each with its tag."""
    return [f"{clipped(word)}/<b>{clipped(tag, LABEL_ROOM)}</b>" for word, tag in zip(words, tags, strict=True)]
