"""The figures of a report on fine-tuning: learning curves and the confusion matrix.

What is counted is in `confusion`. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finetune.report.page import shortened
from pretrain.report.curves import COLOURS, blank, columns, dots, frame, line, logarithmic
from pretrain.report.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_ROOM = 24  # characters of a label on an axis
FEW_POINTS = 30  # lines of fewer points have these marked
FEW_LABELS = 25  # with more labels the cells of a confusion matrix hold no numbers


def draw_training(history: History, metric: str, best_step: int | None) -> Figure:
    """Draw the losses of a run, and the metric that chose its best step, which is ringed."""
    figure = blank(12, 4)
    loss, measured = figure.subplots(1, 2, sharex=True)
    look = {"color": COLOURS[0], "marker": "." if len(history.train) < FEW_POINTS else None}
    line(loss, history.train, "step", "loss", look, label="training")
    dots(loss, history.evaluation, "step", "loss", COLOURS[1], label="validation")
    logarithmic(loss)
    steps, values = columns(history.evaluation, "step", metric)
    measured.plot(steps, values, "o-", color=COLOURS[1], markeredgecolor="white", markersize=6, linewidth=1.2)
    best = values[steps == best_step]
    if len(best) and np.isfinite(best[0]):
        ring = {"markersize": 13, "fillstyle": "none", "color": COLOURS[2], "markeredgewidth": 1.8}
        measured.plot(best_step, best[0], "o", label=f"best: {best[0]:.4f} at step {best_step}", **ring)
    frame(loss, "Loss", legend="best")
    frame(measured, f"Validation {metric}", legend="best")
    for panel in (loss, measured):
        panel.set_xlabel("optimizer steps")
    return figure


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw counts (C, C) of labels in the data (rows) and predicted (columns), as shares of their rows."""
    from sklearn.metrics import ConfusionMatrixDisplay

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(names) <= FEW_LABELS
    size = 3 + (0.6 if few else 0.28) * len(names)  # inches
    figure = blank(size, size)
    panel = figure.subplots()
    look = {"cmap": "Blues", "colorbar": False, "im_kw": {"vmin": 0, "vmax": 1}}
    ConfusionMatrixDisplay(shares).plot(include_values=few, values_format=".0%", ax=panel, **look)
    labels = [shortened(name, LABEL_ROOM) for name in names]
    places = range(len(names))
    panel.set_xticks(places, labels, parse_math=False, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(places, labels, parse_math=False)
    panel.set(xlabel="predicted", ylabel="in the data")
    return figure
