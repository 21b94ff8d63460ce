"""What is taken for what, and how well each label is found: of texts, of words, of anything that has one label.

Holds these two sections, whose numbers are scikit-learn's; errors with their texts are for the tasks' own sections.
Letters: E examples, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.report.figures import draw_confusion
from finetune.report.page import LABEL_ROOM, Picture, Section, clipped
from pretrain.report.markdown import table

TABLE_LABELS = 12  # up to here the counts are also in a table; beyond it are the most frequent confusions
FIGURE_LABELS = 40  # up to here there is a figure
LISTED = 60  # labels in the table of labels
CONFUSIONS = 15  # in the list of the most frequent ones


def confusion(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Section:
    """Return how often each label (E,) is predicted (E,) as which; both hold places in `names`."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predicted, labels=range(len(names)))
    parts: list[str | Picture] = []
    if len(names) <= FIGURE_LABELS:
        parts.append(confusion_picture(counts, names, names))
    if len(names) <= TABLE_LABELS:
        parts += ["Rows are the labels of the data, columns what is predicted.", confusion_table(counts, names, names)]
    else:
        parts.append(_frequent(counts, names))
    return Section("What is taken for what", parts)


def confusion_picture(counts: np.ndarray, rows: Sequence[str], header: Sequence[str]) -> Picture:
    """Return the figure of counts (R, C) of what is (rows) and what is predicted (columns)."""
    shows = "Counts of what is predicted for each label of the data"
    return Picture("confusion", shows, lambda path: draw_confusion(counts, rows, header, path))


def confusion_table(counts: np.ndarray, rows: Sequence[str], header: Sequence[str]) -> str:
    """Return counts (R, C) as a table."""
    body = [
        [clipped(name, LABEL_ROOM), *(f"{count:,}" for count in row)]
        for name, row in zip(rows, counts.tolist(), strict=True)
    ]
    return table(["", *(clipped(name, LABEL_ROOM) for name in header)], body)


def by_label(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Section:
    """Return precision, recall, F1 and support of each label.

    `labels` and `predicted` are places in `names`, (E,), or zeros and ones, (E, C). What divides by nothing is 0.
    """
    if labels.ndim == 1:
        found = _scores(labels, predicted, range(len(names)))
    else:
        found = np.hstack([_scores(own, guess, [1]) for own, guess in zip(labels.T, predicted.T, strict=True)])
    rows = list(zip(names, *found.tolist(), strict=True))
    told = ""
    if len(rows) > LISTED:
        told = f"The {LISTED} of {len(rows):,} labels with the lowest F1, of those that the data have."
        rows = sorted((row for row in rows if row[4]), key=lambda row: row[3])[:LISTED]
    body = [
        [clipped(name, LABEL_ROOM), *(f"{value:.3f}" for value in shares), f"{support:,.0f}"]
        for name, *shares, support in rows
    ]
    return Section(
        "Labels", [*([told] if told else []), table(["label", "precision", "recall", "F1", "support"], body)]
    )


def _scores(labels: np.ndarray, predicted: np.ndarray, of: Sequence[int]) -> np.ndarray:
    """Return precision, recall, F1 and support (4, n) of n labels."""
    from sklearn.metrics import precision_recall_fscore_support

    options: Any = {"labels": of, "zero_division": 0.0}  # scikit-learn's annotations know neither
    return np.array(precision_recall_fscore_support(labels, predicted, **options), dtype=np.float64)


def _frequent(counts: np.ndarray, names: Sequence[str]) -> str:
    """Return the most frequent confusions as a table."""
    wrong = counts * ~np.eye(len(names), dtype=bool)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        gold, predicted = divmod(int(place), len(names))
        if wrong[gold, predicted]:
            shown = [clipped(names[label], LABEL_ROOM) for label in (gold, predicted)]
            rows.append([*shown, f"{wrong[gold, predicted]:,}", f"{counts[gold].sum():,}"])
    return table(["in the data", "predicted", "times", "of"], rows) if rows else "No label is taken for another."
