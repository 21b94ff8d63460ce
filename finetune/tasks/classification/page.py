"""The report of classification and regression: numbers and confusions of labels, and the worst errors.

Predictions are those of the task's `predict`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from finetune.report.confusion import by_label, confusion
from finetune.report.page import LABEL_ROOM, TEXT_ROOM, Mistake, Section, clipped, worst_errors
from finetune.tasks.classification.labels import LabelledText
from pretrain.report.markdown import literal

Prediction = dict[str, Any]


def single_label(
    texts: Sequence[LabelledText], predictions: Sequence[Prediction], names: Sequence[str]
) -> list[Section]:
    """Return the numbers of each label, confusions, and the most confident wrong answers."""
    in_data, predicted = [str(text.label) for text in texts], [found["label"] for found in predictions]
    right = [label for label, guess in zip(in_data, predicted, strict=True) if label == guess]
    mistakes = [
        _mistake(text, found["score"], f"{found['score']:.3f}", [found["label"]], [str(text.label)])
        for text, found in zip(texts, predictions, strict=True)
        if found["label"] != text.label
    ]
    return [
        by_label(in_data, predicted, right),
        confusion(in_data, predicted, names),
        worst_errors(mistakes, len(texts), "probability"),
    ]


def label_sets(texts: Sequence[LabelledText], predictions: Sequence[Prediction]) -> list[Section]:
    """Return the numbers of each label, and the answers with the most confident wrong decision on a label."""
    in_data = [label if isinstance(label := text.label, tuple) else () for text in texts]
    predicted = [found["labels"] for found in predictions]
    right = [set(own) & set(guess) for own, guess in zip(in_data, predicted, strict=True)]
    mistakes = []
    for text, own, found in zip(texts, in_data, predictions, strict=True):
        wrong = {name: abs(found["probabilities"][name] - 0.5) for name in {*own} ^ {*found["labels"]}}
        if wrong:
            worst = max(wrong, key=lambda name: wrong[name])
            shown = f"{0.5 + wrong[worst]:.3f} for {clipped(worst, LABEL_ROOM)}"
            mistakes.append(_mistake(text, wrong[worst], shown, found["labels"], own))
    chain = itertools.chain.from_iterable
    return [
        by_label(chain(in_data), chain(predicted), chain(right)),
        worst_errors(mistakes, len(texts), "probability of the wrong decision"),
    ]


def regression(texts: Sequence[LabelledText], predictions: Sequence[Prediction]) -> list[Section]:
    """Return the largest differences."""
    mistakes = []
    for text, found in zip(texts, predictions, strict=True):
        assert isinstance(text.label, float)
        difference = found["score"] - text.label
        numbers = [f"{found['score']:.4g}"], [f"{text.label:.4g}"]
        mistakes.append(_mistake(text, abs(difference), f"{difference:+.4g}", *numbers))
    return [worst_errors(mistakes, len(texts), "difference")]


def _mistake(text: LabelledText, badness: float, shown: str, *labels: Iterable[str]) -> Mistake:
    """Return a row of the worst errors; `labels` are those predicted, then those in the data."""
    sets = [", ".join(clipped(name, LABEL_ROOM) for name in names) or "*none*" for names in labels]
    texts = [text.text] if text.pair is None else [text.text, text.pair]
    joined = " / ".join(clipped(part, TEXT_ROOM // len(texts)) for part in texts)
    return Mistake((badness,), [shown, *sets, joined, literal(text.place)])
