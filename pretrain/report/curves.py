"""The curves of runs: what is drawn of them, on which axes, smoothed, and thinned where points are many.

Holds numbers and colours; `figures` draws pictures of them and `html` pages. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pretrain.report.history import History, Row, median_of
from pretrain.report.page import Chart, Charts, Curve
from pretrain.tracking.base import CHOICES, RAW

# Okabe and Ito's colours, told apart with any colour vision; yellow and sky blue are too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
ON_DARK = ("#56B4E9", "#F0793A", "#1EC79A", "#DE9CC0", "#F0B93A", "#F2F2F2")  # of the same hues
STYLES = ("-", "--", "-.", ":")  # the next one when the colours are used up
DASHED = 2 * len(COLOURS) - 1  # a look: the last colour in the second style
DIVIDED, UNDIVIDED = "likelihood of a byte", "likelihood of the whole choice"  # what choices are compared by
MANY_POINTS = 100  # from here on a line is drawn smoothed, over the faint raw one
ABSURD = 1e200  # no axis has room for more
SMOOTHING = 40  # a point of the smoothed line stands for 1/40 of the raw ones


def training_charts(runs: Sequence[History]) -> Charts:
    """Return loss, learning rate, gradient norm and throughput of one or more runs of pretraining.

    Where one learns to tell pairs of sentences apart, also its loss and accuracy on these.
    """
    alone = len(runs) == 1

    def curves(key: str, *, smooth: bool = True) -> list[Curve]:
        return [
            curve(
                *(run, run.train, key),
                name="training" if alone else run.name,
                look=number,
                label=_speed(run, alone) if key == "tokens_per_s" else None,
                smooth=smooth,
            )
            for number, run in enumerate(runs)
        ]

    def with_held_out(key: str) -> list[Curve]:
        """Return the curves of training, and dots of what was held out."""
        dots = [
            curve(
                *(run, run.evaluation, key),
                name="held out" if alone else f"{run.name}, held out",
                group="held out" if alone else run.name,
                look=1 if alone else number,
                line=False,
                label=True,
                ring=run.facts.get("best_step") if alone and key == "loss" else None,
            )
            for number, run in enumerate(runs)
        ]
        return [*curves(key), *dots]

    charts = [
        Chart("Loss, nats per target (line: training, dots: held out)", with_held_out("loss"), logarithmic=True),
        Chart("Learning rate", curves("lr", smooth=False), from_zero=True),
        Chart("Gradient norm before clipping", curves("grad_norm"), logarithmic=True),
        Chart("Tokens per second", curves("tokens_per_s"), from_zero=True),
    ]
    if any("sentence_loss" in row for run in runs for row in (*run.train, *run.evaluation)):
        charts += [
            Chart("Loss on sentences, nats per pair", with_held_out("sentence_loss")),
            Chart("Share of pairs told right", with_held_out("sentence_accuracy")),
        ]
    return Charts("curves", charts, shared_axis(runs))


def choice_charts(runs: Sequence[History], sets: Sequence[str]) -> Charts:
    """Return the accuracies of one or more runs on multiple-choice sets, a chart for each, with those of guesses."""
    alone = len(runs) == 1
    charts = []
    for name in sets:
        key = CHOICES + name
        measured = [run for run in runs if any(key in row for row in run.evaluation)]
        look: Any = {"label": True, "dots": True, "smooth": False}
        curves = [
            curve(run, run.evaluation, key, name=DIVIDED if alone else run.name, look=number, **look)
            for number, run in enumerate(runs)
            if run in measured
        ]
        if alone:
            curves.append(curve(runs[0], runs[0].evaluation, key + RAW, name=UNDIVIDED, look=1, **look))
        longest = max(measured, key=lambda run: run.last_step)
        if chance := longest.facts.get("choices", {}).get(name, {}).get("chance"):
            ends = [{**row, "chance": chance} for row in (longest.evaluation[0], longest.evaluation[-1])]
            curves.append(curve(longest, ends, "chance", name="chance", label="chance", look=DASHED))
        charts.append(Chart(f"{name}: share of right answers (dashed: chance)", curves))
    return Charts("choices", charts, shared_axis(runs))


def curve(
    run: History,
    rows: Sequence[Row],
    key: str,
    *,
    name: str,
    look: int,
    group: str | None = None,
    label: str | bool | None = None,
    line: bool = True,
    dots: bool = False,
    smooth: bool = True,
    ring: int | None = None,
) -> Curve:
    """Return a value of the rows of a run; those that are not finite, or absurd, become gaps.

    `group` is the name unless set. A `label` that is true is the name with the last value; `ring` is a step.
    """
    rows = [row for row in rows if key in row]
    values = np.array([row[key] for row in rows], dtype=float)
    steps = np.array([row["step"] for row in rows], dtype=float)
    x = {"step": steps, "tokens": np.array([row.get("tokens", np.nan) for row in rows], dtype=float)}
    if clock := run.clock:
        x["seconds"] = np.interp(steps, *clock)
    if label is True:
        label = f"{name} {values[-1]:.3f} at the end" if len(values) else None
    return Curve(
        name=name,
        group=group or name,
        label=label or None,
        look=look,
        x=x,
        y=np.where(np.abs(values) < ABSURD, values, np.nan),
        line=line,
        dots=dots or not line,
        smooth=smooth and line and len(values) >= MANY_POINTS,
        ring=int(np.flatnonzero(steps == ring)[0]) if ring in steps else None,
    )


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


def thinned(values: np.ndarray, limit: int) -> np.ndarray:
    """Return indices of at most `limit` (4 or more) of the values (n,), in order.

    Both ends are among them, and the lowest and the highest of every stretch between.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (limit - 2) // 2 + 1).astype(int)
    kept = {0, len(values) - 1}
    for begin, end in pairwise(edges):
        part, gaps = values[begin:end], np.isnan(values[begin:end])
        kept |= {
            begin + int(np.where(gaps, np.inf, part).argmin()),
            begin + int(np.where(gaps, -np.inf, part).argmax()),
        }
    return np.array(sorted(kept))


def _speed(run: History, alone: bool) -> str:
    rate, share = median_of(run.train, "tokens_per_s"), median_of(run.train, "mfu")
    text = "not measured" if rate is None else f"median {rate:,.0f}"
    text = text if share is None else f"{text}, MFU {share:.1%}"
    return text if alone else f"{run.name}, {text}"
