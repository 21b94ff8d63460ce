"""Precision, recall and F1 of each label, and which label is predicted for which: of texts, of words, of entities.

The errors with their texts are the tasks' own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from finetune.report.figures import draw_confusion
from finetune.report.page import LABEL_ROOM, Section, clipped
from pretrain.report.markdown import table

FIGURE_LABELS = 40  # with more labels there is no figure
MAX_LABELS = 60  # rows of the table of labels
MAX_CONFUSIONS = 15  # rows of the table of confusions


def by_label(in_data: Iterable[str], predicted: Iterable[str], right: Iterable[str]) -> Section:
    """Return precision, recall and F1 of each label that occurs, the lowest F1 first.

    Each argument names a label once per occurrence: in the data, in the predictions, and in both. Precision of what is
    never predicted and recall of what the data do not have are 0.
    """
    real, guessed, hits = Counter(in_data), Counter(predicted), Counter(right)
    f1 = {label: 2 * hits[label] / (real[label] + guessed[label]) for label in sorted(real | guessed)}
    rows = []
    for label in sorted(f1, key=lambda label: f1[label])[:MAX_LABELS]:
        shares = (hits[label] / max(guessed[label], 1), hits[label] / max(real[label], 1), f1[label])
        counts = (f"{real[label]:,}", f"{guessed[label]:,}")
        rows.append([clipped(label, LABEL_ROOM), *(f"{share:.3f}" for share in shares), *counts])
    more = f" Shown are {MAX_LABELS} of {len(f1):,} labels." if len(f1) > MAX_LABELS else ""
    header = ["label", "precision", "recall", "F1", "in the data", "predicted"]
    return Section("Labels", f"The lowest F1 comes first.{more}\n\n{table(header, rows)}")


def confusion(in_data: Sequence[str], predicted: Sequence[str], names: Iterable[str]) -> Section:
    """Return how often which label is predicted for which, one pair per answer; `names` gives the figure its order."""
    pairs, real = Counter(zip(in_data, predicted, strict=True)), Counter(in_data)
    rows = [
        [*(clipped(label, LABEL_ROOM) for label in pair), f"{times:,}", f"{real[pair[0]]:,}"]
        for pair, times in pairs.most_common()
        if pair[0] != pair[1]
    ]
    text = "No label is taken for another."
    if rows:
        text = table(["in the data", "predicted instead", "times", "of"], rows[:MAX_CONFUSIONS])
    labels = [name for name in names if any(name in pair for pair in pairs)]
    if len(labels) > FIGURE_LABELS:
        return Section("Confusion matrix", text)
    counts = np.array([[pairs[own, guess] for guess in labels] for own in labels])
    return Section("Confusion matrix", text, draw_confusion(counts, labels))
