"""The report of classification and regression: numbers and confusions of labels, and the worst errors.

Predictions are those of the task's `predict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finetune.report.confusion import by_label, confusion
from finetune.report.mistakes import LABEL_ROOM, TEXT_ROOM, Mistake, worst_errors
from finetune.tasks.classification.labels import LabelledText
from pretrain.report.page import Cell, Number, Section, Style, Styled, number, shortened

Prediction = dict[str, Any]


def single_label(
    texts: Sequence[LabelledText], predictions: Iterable[Prediction], names: Sequence[str]
) -> list[Section]:
    """Return the numbers of each label, confusions, and the most confident wrong answers."""
    in_data, predicted, right, mistakes = [str(text.label) for text in texts], [], [], []
    for text, found in zip(texts, predictions, strict=True):
        predicted.append(found["label"])
        if found["label"] == text.label:
            right.append(found["label"])
        else:
            shown = number(found["score"], digits=3)
            mistakes.append(_mistake(text, found["score"], shown, [found["label"]], [str(text.label)]))
    return [
        by_label(in_data, predicted, right),
        confusion(in_data, predicted, names),
        worst_errors(mistakes, len(texts), "probability"),
    ]


def label_sets(texts: Sequence[LabelledText], predictions: Iterable[Prediction]) -> list[Section]:
    """Return the numbers of each label, and the answers with the most confident wrong decision on a label."""
    in_data, predicted, right, mistakes = [], [], [], []
    for text, found in zip(texts, predictions, strict=True):
        assert isinstance(text.label, tuple)
        own, guess = set(text.label), set(found["labels"])
        in_data += own
        predicted += guess
        right += own & guess
        if own != guess:
            certainty = {
                name: abs(share - 0.5) for name, share in found["probabilities"].items() if name in own ^ guess
            }
            worst = max(certainty, key=lambda name: certainty[name])
            probability = 0.5 + certainty[worst]
            shown = Number(f"{probability:.3f} for {shortened(worst, LABEL_ROOM)}", probability)
            mistakes.append(_mistake(text, certainty[worst], shown, found["labels"], text.label))
    errors = worst_errors(mistakes, len(texts), "probability of the wrong decision")
    return [by_label(in_data, predicted, right), errors]


def regression(texts: Sequence[LabelledText], predictions: Iterable[Prediction]) -> list[Section]:
    """Return the largest differences."""
    mistakes = []
    for text, found in zip(texts, predictions, strict=True):
        assert isinstance(text.label, float)
        difference = found["score"] - text.label
        numbers = [f"{found['score']:.4g}"], [f"{text.label:.4g}"]
        mistakes.append(_mistake(text, abs(difference), Number(f"{difference:+.4g}", difference), *numbers))
    return [worst_errors(mistakes, len(texts), "difference")]


def _mistake(text: LabelledText, badness: float, shown: Cell, *labels: Iterable[str]) -> Mistake:
    """Return a row of the worst errors; `labels` are those predicted, then those in the data."""
    joined = [", ".join(shortened(name, LABEL_ROOM) for name in names) for names in labels]
    sets = [names or Styled("none", Style.emphasis) for names in joined]
    texts = [text.text] if text.pair is None else [text.text, text.pair]
    both = " / ".join(shortened(part, TEXT_ROOM // len(texts)) for part in texts)
    return Mistake((badness,), [shown, *sets, both, text.place])
