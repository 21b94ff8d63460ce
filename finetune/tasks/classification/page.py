"""What a report page says of labels, sets of labels and numbers of texts.

Holds the sections; what texts are and what the logits mean is the task's. Letters: E examples, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from finetune.report.confusion import by_label, confusion
from finetune.report.figures import draw_scatter
from finetune.report.page import LABEL_ROOM, TEXT_ROOM, WORST, Picture, Section, clipped
from pretrain.report.markdown import literal, table


class Item(NamedTuple):
    """What was classified."""

    texts: list[str]  # one, or a pair
    place: str  # file and line


def single_label(
    items: Sequence[Item], probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[Section]:
    """Return confusions, labels and worst errors; `probabilities` are (E, C), `labels` (E,) places in `names`."""
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")]

    def shown(at: int) -> list[str]:
        own, guess = int(labels[at]), int(predicted[at])
        shares = [f"{probabilities[at, label]:.3f}" for label in (guess, own)]
        return [shares[0], clipped(names[guess], LABEL_ROOM), clipped(names[own], LABEL_ROOM), shares[1]]

    header = ["probability", "predicted", "in the data", "its probability"]
    told = f"{len(worst):,} of {len(items):,} answers are wrong. The most confident come first."
    errors = _errors(told, items, worst, header, shown)
    return [confusion(labels, predicted, names), by_label(labels, predicted, names), errors]


def multi_label(
    items: Sequence[Item], probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[Section]:
    """Return labels and worst errors; `probabilities` are (E, C), `labels` (E, C) zeros and ones."""
    predicted = probabilities > 0.5
    wrong = predicted != labels.astype(bool)
    surest = np.where(wrong, np.maximum(probabilities, 1 - probabilities), 0.0)  # of the decisions that are wrong
    places = np.flatnonzero(wrong.any(1))
    worst = places[np.argsort(-surest[places].max(1), kind="stable")]

    def shown(at: int) -> list[str]:
        most = int(surest[at].argmax())
        sets = [
            ", ".join(clipped(name, LABEL_ROOM) for name, has in zip(names, row[at], strict=True) if has)
            for row in (predicted, labels)
        ]
        return [f"{surest[at, most]:.3f}", clipped(names[most], LABEL_ROOM), *(one or "*none*" for one in sets)]

    told = (
        f"{len(worst):,} of {len(items):,} answers have a wrong label, or lack one. Those with the most confident "
        "wrong decision come first: its label, and the probability of what was decided."
    )
    errors = _errors(told, items, worst, ["probability", "label", "predicted", "in the data"], shown)
    return [by_label(labels, predicted.astype(int), names), errors]


def regression(items: Sequence[Item], predicted: np.ndarray, targets: np.ndarray) -> list[Section]:
    """Return the scatter of predictions against targets, both (E,), and the largest differences."""
    differences = predicted.astype(np.float64) - targets
    worst = np.argsort(-np.abs(differences), kind="stable")

    def shown(at: int) -> list[str]:
        return [f"{value:.4g}" for value in (predicted[at], targets[at])] + [f"{differences[at]:+.4g}"]

    picture = Picture("scatter", "Predictions against targets", lambda path: draw_scatter(predicted, targets, path))
    sizes = np.abs(differences)
    told = f"The mean absolute difference is {sizes.mean():.4g}, the median {np.median(sizes):.4g}."
    header = ["predicted", "in the data", "difference"]
    errors = _errors("The largest differences come first.", items, worst, header, shown)
    return [Section("Predictions and targets", [picture, told]), errors]


def _errors(
    told: str, items: Sequence[Item], worst: np.ndarray, header: list[str], shown: Callable[[int], list[str]]
) -> Section:
    """Return the section of errors, of which `worst` (n,) int64 holds the places, worst first."""
    if not len(worst):
        return Section("Worst errors", ["There is none."])
    texts = ["text", "second text"][: len(items[0].texts)]
    rows = []
    for at in worst[:WORST].tolist():
        cells = [clipped(text, TEXT_ROOM // len(texts)) for text in items[at].texts]
        rows.append([*shown(at), *cells, literal(items[at].place)])
    return Section("Worst errors", [told, table([*header, *texts, "where"], rows)])
