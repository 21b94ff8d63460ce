"""The report of tags of words: numbers of types of entities or of tags, their confusions, the worst sentences.

Tags are predicted by the task.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from finetune.report.confusion import by_label, confusion
from finetune.report.mistakes import LABEL_ROOM, Mistake, worst_errors
from finetune.tasks.tokens.metrics import entity_spans, entity_type
from finetune.tasks.tokens.sentences import OUTSIDE, Sentence
from pretrain.report.page import Section, Style, Styled, number, shortened

WORDS_BEFORE = 12  # words of a sentence that are shown before the first error
WORDS_SHOWN = 60  # of a sentence


def tag_sections(
    sentences: Sequence[Sentence], predicted: Sequence[list[str]], names: Sequence[str], *, entities: bool
) -> list[Section]:
    """Return the sections of sentences with tags and those `predicted`, which mark `entities` or stand for themselves.

    Precision, recall and F1 are of whole entities if there are any; confusions count words.
    """
    tags = [sentence.tags or [] for sentence in sentences]
    own, guess = (list(itertools.chain(*rows)) for rows in (tags, predicted))
    if entities:
        sets = [(set(entity_spans(row)), set(entity_spans(found))) for row, found in zip(tags, predicted, strict=True)]
        numbers = by_label(
            (kind for real, _ in sets for kind, *_ in real),
            (kind for _, found in sets for kind, *_ in found),
            (kind for real, found in sets for kind, *_ in real & found),
        )
        own, guess, names = (list(map(entity_type, row)) for row in (own, guess, names))
    else:
        numbers = by_label(own, guess, (tag for tag, found in zip(own, guess, strict=True) if tag == found))
    order = dict.fromkeys([*names, OUTSIDE])  # the last is predicted for words without a token
    return [numbers, confusion(own, guess, order), worst_errors(_mistakes(sentences, predicted), len(tags), "words")]


def _mistakes(sentences: Sequence[Sentence], predicted: Sequence[list[str]]) -> list[Mistake]:
    """Return the sentences that have words with a wrong tag, shown from shortly before the first of these."""
    mistakes = []
    for sentence, found in zip(sentences, predicted, strict=True):
        tags = sentence.tags or []
        wrong = [word for word, (tag, guess) in enumerate(zip(tags, found, strict=True)) if tag != guess]
        if not wrong:
            continue
        start = max(wrong[0] - WORDS_BEFORE, 0)
        shown = range(start, min(start + WORDS_SHOWN, len(tags)))
        text: list[str | Styled] = ["… " * (start > 0)]
        for word in shown:
            own = shortened(sentence.words[word], LABEL_ROOM)
            text += [Styled(own, Style.marked) if word in wrong else own, " " * (word + 1 < shown.stop)]
        text.append(" …" * (shown.stop < len(tags)))
        cells = [" ".join(shortened(row[word], LABEL_ROOM) for word in wrong if word in shown) for row in (found, tags)]
        mistakes.append(Mistake((len(wrong),), [number(len(wrong), digits=0), *cells, tuple(text), sentence.place]))
    return mistakes
