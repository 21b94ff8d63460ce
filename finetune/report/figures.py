"""The figures of a report on fine-tuning: curves, confusions, shares by bin, scores and scatter, each as one PNG.

Holds the drawing only; what is drawn is counted in `sections`. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune.report.page import shortened
from pretrain.report.curves import COLOURS, columns, dots, frame, line, logarithmic
from pretrain.report.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_ROOM = 24  # characters of a label on an axis
FEW_POINTS = 30  # up to here the points of a line are marked
COUNTED = 25  # up to so many columns the cells of a confusion hold their counts
SCORE_BINS = 24  # of the figure of scores


class Panel(NamedTuple):
    """Bars over bins, side by side where there are several values."""

    title: str
    bins: list[str]  # what is in each
    sizes: list[int]  # how many are in each
    values: Mapping[str, Sequence[float]]  # shares by what they are, one for each bin; nan: no bar


def draw_training(history: History, metric: str, best_step: int | None, path: Path) -> None:
    """Draw the losses of a run and the metric that chose its best step, which is ringed."""
    figure = _figure(12, 4)
    loss, measured = figure.subplots(1, 2, sharex=True)
    look = {"color": COLOURS[0], "marker": "." if len(history.train) <= FEW_POINTS else None}
    line(loss, history.train, "step", "loss", look, label="training")
    dots(loss, history.evaluation, "step", "loss", COLOURS[1], label="validation")
    logarithmic(loss)
    x, y = columns(history.evaluation, "step", metric)
    measured.plot(x, y, "o-", color=COLOURS[1], markeredgecolor="white", markersize=6, linewidth=1.2)
    for step, value in zip(x, y, strict=True):
        if step == best_step and np.isfinite(value):
            look = {"markersize": 13, "fillstyle": "none", "color": COLOURS[2], "markeredgewidth": 1.8}
            measured.plot(step, value, "o", label=f"best: {value:.4f} at step {step:.0f}", **look)
    frame(loss, "Loss", legend="best")
    frame(measured, f"Validation {metric}", legend="best")
    for panel in (loss, measured):
        panel.set_xlabel("optimizer steps")
    figure.savefig(path)


def draw_confusion(counts: np.ndarray, rows: Sequence[str], header: Sequence[str], path: Path) -> None:
    """Draw counts (R, C) int64 of what is (rows) and what is predicted (columns), coloured by their share of a row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = 0.72 if len(header) <= COUNTED else 0.28  # inches
    rows, header = ([shortened(name, LABEL_ROOM) for name in names] for names in (rows, header))
    longest = max(map(len, (*rows, *header)))
    figure = _figure(2.6 + cell * len(header) + 0.07 * longest, 1.5 + cell * len(rows) + 0.07 * longest)
    panel = figure.subplots()
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _label(panel.xaxis, header, rotation=45 if len(header) > 3 or longest > 8 else 0)
    _label(panel.yaxis, rows)
    if len(header) <= COUNTED:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.55 else "#9a9a9a" if not counts[row, column] else "black"
            panel.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=9)
    panel.set_xticks(np.arange(len(header) + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="both", length=0, labelsize=9)
    panel.spines[:].set_visible(False)
    panel.set_xlabel("predicted")
    panel.set_ylabel("in the data")
    bar = figure.colorbar(image, ax=panel, shrink=min(1.0, 4 / (cell * len(rows) + 1)), format="{x:.0%}")
    bar.set_label("share of the row", fontsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0, labelsize=9)
    figure.savefig(path)


def draw_bins(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels of bars side by side, on one scale from 0 to 1."""
    widths = [max(len(panel.bins), 2) for panel in panels]
    figure = _figure(1.2 + 0.95 * sum(widths), 4)
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, panel in zip(drawn, panels, strict=True):
        width = 0.8 / len(panel.values)
        for index, (name, values) in enumerate(panel.values.items()):
            at = np.arange(len(values)) + (index - (len(panel.values) - 1) / 2) * width
            axes.bar(at, np.nan_to_num(values), width * 0.92, color=COLOURS[index], label=name)
            for x, value in zip(at, values, strict=True):
                if np.isfinite(value):
                    axes.text(x, value + 0.01, f"{100 * value:.0f}", ha="center", va="bottom", fontsize=8)
        frame(axes, panel.title)
        axes.grid(visible=False, axis="x")
        told = zip(panel.bins, panel.sizes, strict=True)
        _label(axes.xaxis, [f"{shortened(name, LABEL_ROOM)}\nn = {size:,}" for name, size in told])
        axes.set_ylim(0, 1.08)
        axes.yaxis.set_major_formatter("{x:.0%}")
    if len(panels[0].values) > 1:
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def draw_scores(scores: Mapping[str, np.ndarray], threshold: float, title: str, path: Path) -> None:
    """Draw how scores (n,) are spread, of each group by its name, and the threshold between them."""
    figure = _figure(7, 3.6)
    panel = figure.subplots()
    together = np.concatenate([*scores.values()])
    edges = np.histogram_bin_edges(together, bins=SCORE_BINS)
    for (name, values), colour in zip(scores.items(), COLOURS, strict=False):
        label = f"{name} (n = {len(values):,})"
        panel.hist(values, edges.tolist(), histtype="stepfilled", color=colour, alpha=0.25)
        panel.hist(values, edges.tolist(), histtype="step", color=colour, linewidth=1.8, label=label)
    if edges[0] <= threshold <= edges[-1]:
        panel.axvline(threshold, color="black", linewidth=1.4, linestyle="--", label=f"threshold {threshold:.2f}")
    frame(panel, title, legend="best")
    panel.set_ylabel("questions")
    figure.savefig(path)


def draw_scatter(predicted: np.ndarray, targets: np.ndarray, path: Path) -> None:
    """Draw predictions against targets, both (n,), and the line on which they are equal."""
    figure = _figure(5.6, 5.4)
    panel = figure.subplots()
    both = np.concatenate([predicted, targets])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    panel.plot(limits, limits, color="#9a9a9a", linewidth=1.2, label="prediction = target")
    size = float(np.clip(2000 / max(len(targets), 1), 6, 28))
    panel.scatter(targets, predicted, s=size, color=COLOURS[0], alpha=0.5, linewidths=0)
    panel.set(xlim=limits, ylim=limits, xlabel="in the data", ylabel="predicted", aspect="equal")
    frame(panel, f"{len(targets):,} predictions", legend="upper left")
    figure.savefig(path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _label(axis: Any, names: Sequence[str], rotation: float = 0) -> None:
    """Put names at 0, 1, 2, ...; a dollar sign in one begins no formula."""
    options = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axis.set_ticks(range(len(names)), labels=names, parse_math=False, **options)
