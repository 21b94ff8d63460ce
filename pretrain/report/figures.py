"""Plots of a page as pictures, drawn by matplotlib: curves and confusion matrices.

What is drawn is said in `page` and `curves`. Free of torch.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.report.curves import COLOURS, STYLES, smoothed, thinned
from pretrain.report.page import AXES, Chart, Charts, Curve, Matrix, readable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 4_000  # of a line: twice what a picture has columns
FEW_POINTS = 30  # lines of fewer points have these marked
FEW_LABELS = 25  # with more labels the cells of a confusion matrix hold no numbers
LABEL_ROOM = 24  # characters of a label on an axis
LEGEND_ROOM = 60  # characters of an entry of a legend


def picture(block: Charts | Matrix) -> bytes:
    """Return a plot as PNG, the same bytes for the same plot."""
    figure = draw_charts(block) if isinstance(block, Charts) else draw_matrix(block)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def small(picture: bytes) -> bytes:
    """Return a PNG in half its size and few colours: a fifth of the bytes or so."""
    from PIL import Image

    image = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as full:
        full.convert("RGB").reduce(2).quantize(32).save(image, "png", optimize=True)
    return image.getvalue()


def draw_charts(block: Charts) -> Figure:
    """Draw charts in two columns, on a shared horizontal axis."""
    from matplotlib.ticker import EngFormatter

    lines = (len(block.charts) + 1) // 2
    figure = _blank(12, 3.75 * lines)
    grid = figure.subplots(lines, 2, sharex=True, squeeze=False)
    for panel, chart in zip(grid.flat, block.charts, strict=False):
        _draw(panel, chart, block.axis)
    used = len(block.charts)
    for panel in grid.flat[used:]:
        panel.set_axis_off()
    for panel in grid.flat[max(used - 2, 0) : used]:  # the lowest of each column
        panel.set_xlabel(AXES[block.axis])
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.tick_params(labelbottom=True)
    return figure


def draw_matrix(block: Matrix) -> Figure:
    """Draw the shares of a matrix of confusions."""
    from sklearn.metrics import ConfusionMatrixDisplay

    few = len(block.names) <= FEW_LABELS
    size = 3 + (0.6 if few else 0.28) * len(block.names)  # inches
    figure = _blank(size, size)
    panel = figure.subplots()
    look = {"cmap": "Blues", "colorbar": False, "im_kw": {"vmin": 0, "vmax": 1}}
    ConfusionMatrixDisplay(block.shares).plot(include_values=few, values_format=".0%", ax=panel, **look)
    labels = [shortened(name, LABEL_ROOM) for name in block.names]
    places = range(len(labels))
    panel.set_xticks(places, labels, parse_math=False, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(places, labels, parse_math=False)
    panel.set(xlabel="predicted", ylabel="in the data")
    return figure


def _blank(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _draw(panel: Axes, chart: Chart, axis: str) -> None:
    from matplotlib.ticker import EngFormatter

    for curve in chart.curves:
        _draw_curve(panel, curve, axis)
    panel.set_title(readable(chart.title), loc="left", fontsize=11, fontweight="bold", parse_math=False)
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
    if chart.is_logarithmic:
        _logarithmic(panel, chart.values)
    elif chart.from_zero:
        panel.set_ylim(bottom=0)
    if len(chart.values) and chart.values.max() >= 1e4:
        panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.get_legend_handles_labels()[0]:
        place = "upper right" if chart.logarithmic else "lower right" if chart.from_zero else "best"
        legend = panel.legend(loc=place, fontsize=9, framealpha=0.85, edgecolor="none")
        for text in legend.get_texts():
            text.set(text=shortened(text.get_text(), LEGEND_ROOM), parse_math=False)


def _draw_curve(panel: Axes, curve: Curve, axis: str) -> None:
    if not len(curve.y):
        return
    x, y = curve.x[axis], curve.y
    colour = COLOURS[curve.look % len(COLOURS)]
    look: dict[str, Any] = {"color": colour, "linestyle": STYLES[curve.look // len(COLOURS) % len(STYLES)]}
    if curve.ring is not None:
        ring = {"markersize": 13, "fillstyle": "none", "color": COLOURS[2], "markeredgewidth": 1.8}
        label = f"best: {y[curve.ring]:.4f} at step {curve.x['step'][curve.ring]:.0f}"
        panel.plot(x[curve.ring], y[curve.ring], "o", label=label, **ring)
    if not curve.line:
        panel.plot(x, y, "o", markersize=5.5, markeredgecolor="white", color=colour, label=curve.label, zorder=3)
        return
    kept = thinned(y, MOST_POINTS)
    if curve.smooth:
        panel.plot(x[kept], y[kept], linewidth=0.8, alpha=0.25, **look)
        kept, y = smoothed(y)
    else:
        y = y[kept]
    x = x[kept]
    marker = "o" if curve.dots else "." if len(y) < FEW_POINTS else None
    panel.plot(x, y, linewidth=1.8, marker=marker, markeredgecolor="white", label=curve.label, **look)


def _logarithmic(panel: Axes, values: np.ndarray) -> None:
    """Give a panel a logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ticks = (1, 1.5, 2, 3, 4, 5, 6, 8) if values.max() < 30 * values.min() else (1, 2, 5)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=ticks, numticks=30))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
