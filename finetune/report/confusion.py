"""Precision, recall and F1 of each label, and which label is predicted for which: of texts, of words, of entities.

The errors with their texts are the tasks' own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from finetune.report.mistakes import LABEL_ROOM
from pretrain.report.page import Block, Matrix, Section, Table, number, shortened

MATRIX_LABELS = 40  # with more labels there is no matrix
FIRST_LABELS = 60  # rows of the table of labels in Markdown
FIRST_CONFUSIONS = 15  # rows of the table of confusions in Markdown
MOST_CONFUSIONS = 500  # rows of the table of confusions


def by_label(in_data: Iterable[str], predicted: Iterable[str], right: Iterable[str]) -> Section:
    """Return precision, recall and F1 of each label that occurs, the lowest F1 first.

    Each argument names a label once per occurrence: in the data, in the predictions, and in both. Precision of what is
    never predicted and recall of what the data do not have are 0.
    """
    real, guessed, hits = Counter(in_data), Counter(predicted), Counter(right)
    f1 = {label: 2 * hits[label] / (real[label] + guessed[label]) for label in sorted(real | guessed)}
    rows = []
    for label in sorted(f1, key=lambda label: f1[label]):
        shares = (hits[label] / max(guessed[label], 1), hits[label] / max(real[label], 1), f1[label])
        counts = (real[label], guessed[label])
        rows.append(
            [
                shortened(label, LABEL_ROOM),
                *(number(share, digits=3) for share in shares),
                *(number(times, digits=0) for times in counts),
            ]
        )
    header = ["label", "precision", "recall", "F1", "in the data", "predicted"]
    return Section("Labels", ["The lowest F1 comes first.", Table(header, rows, first=FIRST_LABELS)])


def confusion(in_data: Sequence[str], predicted: Sequence[str], names: Iterable[str]) -> Section:
    """Return how often which label is predicted for which, one pair per answer; `names` gives the matrix its order."""
    pairs, real = Counter(zip(in_data, predicted, strict=True)), Counter(in_data)
    rows = [
        [*(shortened(label, LABEL_ROOM) for label in pair), number(times, digits=0), number(real[pair[0]], digits=0)]
        for pair, times in pairs.most_common()
        if pair[0] != pair[1]
    ]
    blocks: list[Block] = []
    labels = [name for name in names if any(name in pair for pair in pairs)]
    if len(labels) > MATRIX_LABELS:
        blocks.append(f"No matrix: {len(labels):,} labels are too many to draw, {MATRIX_LABELS} are not.")
    else:
        counts = np.array([[pairs[own, guess] for guess in labels] for own in labels])
        blocks.append(Matrix("confusion-matrix", labels, counts))
    header = ["in the data", "predicted instead", "times", "of"]
    if rows:
        blocks.append(Table(header, rows[:MOST_CONFUSIONS], first=FIRST_CONFUSIONS))
    else:
        blocks.append("No label is taken for another.")
    if len(rows) > MOST_CONFUSIONS:
        blocks.append(f"There are {len(rows):,} pairs of labels of which one is taken for the other.")
    return Section("Confusion matrix", blocks)
