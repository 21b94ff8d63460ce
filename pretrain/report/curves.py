"""The curves of runs as one PNG: loss, learning rate, gradient norm, throughput.

Holds the drawing only; `history` reads the runs, `report` writes the page around the picture. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.report.history import History, Row, median_of, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; yellow and sky blue are too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":")  # the next one when the colours are used up
MANY_POINTS = 100  # from here on a line is drawn smoothed, over the faint raw one
SMOOTHING = 40  # a point of the smoothed line stands for 1/40 of the raw ones


def draw(runs: Sequence[History], path: Path) -> None:
    """Write the figure of one or more runs, on a shared horizontal axis."""
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    figure = blank(12, 7.5)
    grid = figure.subplots(2, 2, sharex=True)
    loss, rate, norm, speed = grid.flat
    axis = shared_axis(runs)
    alone = len(runs) == 1
    if alone:
        figure.suptitle(runs[0].name, x=0.01, ha="left", fontsize=13)
    for index, run in enumerate(runs):
        name = "" if alone else f"{run.name}, "
        colour = COLOURS[index % len(COLOURS)]
        look = {"color": colour, "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
        line(loss, run.train, axis, "loss", look)
        dots(loss, run.evaluation, axis, "loss", COLOURS[1] if alone else colour, label=f"{name}held out")
        line(rate, run.train, axis, "lr", look, smooth=False)
        line(norm, run.train, axis, "grad_norm", look)
        line(speed, run.train, axis, "tokens_per_s", look, label=name + _speed(run))
    frame(loss, "Loss, nats per target (line: training, dots: held out)", legend="upper right")
    frame(rate, "Learning rate")
    frame(norm, "Gradient norm before clipping")
    frame(speed, "Tokens per second", legend="lower right")
    for panel in (loss, norm):
        logarithmic(panel)
    for panel in (rate, speed):
        panel.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    speed.xaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in grid[1]:
        panel.set_xlabel("optimizer steps" if axis == "step" else "tokens seen")
    save_figure(figure, path)


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def shared_axis(runs: Sequence[History]) -> str:
    """Return "step" where a step means equally many tokens in all runs, else "tokens", which compares them fairly."""
    last = [run.train[-1] for run in runs if run.train]
    per_step = [row["tokens"] / row["step"] for row in last if row["step"] and "tokens" in row]
    return "step" if not per_step or max(per_step) <= 1.01 * min(per_step) else "tokens"


def smoothed(values: np.ndarray, points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into values (n,) and smoothed values there, both (points,) or shorter.

    A smoothed value is the mean of the middle half of a window, so that single spikes stay in the raw line alone. The
    window shrinks towards the start, where curves are steep: the line begins at the first value.
    """
    centres = np.unique(np.linspace(0, len(values) - 1, points).astype(int))
    reach = np.minimum(len(values) // SMOOTHING // 2, centres)
    bounds = zip(centres - reach, centres + reach + 1, strict=True)
    return centres, np.array([_midmean(values[begin:end]) for begin, end in bounds])


def _midmean(window: np.ndarray) -> float:
    ranked = np.sort(window[np.isfinite(window)])
    cut = len(ranked) // 4
    return ranked[cut : len(ranked) - cut].mean() if len(ranked) else np.nan


def line(
    panel: Axes,
    rows: list[Row],
    axis: str,
    key: str,
    look: dict[str, Any],
    *,
    label: str | None = None,
    smooth: bool = True,
) -> None:
    """Draw a value as a line, and smoothed over it where points are many."""
    x, y = columns(rows, axis, key)
    if smooth and len(x) >= MANY_POINTS:
        panel.plot(x, y, linewidth=0.8, alpha=0.25, **look)
        at, y = smoothed(y)
        x = x[at]
    if len(x):
        panel.plot(x, y, linewidth=1.8, label=label, **look)


def dots(panel: Axes, rows: list[Row], axis: str, key: str, colour: str, *, label: str) -> None:
    """Draw a value as dots; the legend has the last one after the label."""
    x, y = columns(rows, axis, key)
    if len(x):
        label = f"{label} {y[-1]:.3f} at the end"
        panel.plot(x, y, "o", markersize=5.5, markeredgecolor="white", color=colour, label=label, zorder=3)


def columns(rows: list[Row], axis: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where and what (n,) of a value; infinite ones become gaps."""
    pairs = [(row[axis], row[key]) for row in rows if key in row and axis in row]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    return x, np.where(np.isfinite(y), y, np.nan)


def _speed(run: History) -> str:
    rate, share = median_of(run.train, "tokens_per_s"), median_of(run.train, "mfu")
    text = "not measured" if rate is None else f"median {rate:,.0f}"
    return text if share is None else f"{text}, MFU {share:.1%}"


def frame(panel: Axes, title: str, legend: Any = None) -> None:
    """Give a panel its title, its grid and, with a place for it, its legend."""
    panel.set_title(title, loc="left", fontsize=11, fontweight="bold")
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
    if legend and panel.get_legend_handles_labels()[0]:
        panel.legend(loc=legend, fontsize=9, framealpha=0.85, edgecolor="none")


def logarithmic(panel: Axes) -> None:
    """Let a panel have a logarithmic axis with plain numbers, if its values are positive and far apart.

    Losses fall by powers and gradient norms spike: both read better so.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    values = np.concatenate([np.asarray(drawn.get_ydata(), dtype=float) for drawn in panel.lines] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() < 2 * values.min():
        return
    ticks = (1, 1.5, 2, 3, 4, 5, 6, 8) if values.max() < 30 * values.min() else (1, 2, 5)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=ticks, numticks=30))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
