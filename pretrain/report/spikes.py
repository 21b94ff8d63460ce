"""Spikes of a run: how often loss and gradient norm leap, and which steps were skipped.

Holds the measure and the section of a page; what was skipped is written by `train/skips`. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pretrain.report.curves import curve, shared_axis
from pretrain.report.history import History, SkipRecord
from pretrain.report.page import UNKNOWN, Block, Cell, Chart, Charts, Curve, Number, Section, Table, number

WINDOW, DEVIATIONS = 1000, 7.0  # of the spike score: OLMo 2, arXiv 2501.00656, section 3
LEAST = 100  # values before one that is judged
LISTED = 40  # skipped steps that a page lists


def spikes(values: Sequence[float]) -> list[int]:
    """Return the indices of values at least `DEVIATIONS` away from the mean of the `WINDOW` values before them.

    In standard deviations of these; they are fewer at the start, at least `LEAST`. Values that are not finite count
    nowhere.
    """
    kept = [index for index, value in enumerate(values) if math.isfinite(value)]
    finite = np.array([values[index] for index in kept])
    found = []
    for place in range(LEAST, len(finite)):
        before = finite[max(place - WINDOW, 0) : place]
        away, deviation = abs(finite[place] - before.mean()), before.std()
        if away and away >= DEVIATIONS * deviation:
            found.append(kept[place])
    return found


def spike_section(runs: Sequence[History]) -> list[Section]:
    """Return how often runs had spikes and what they skipped, if there is anything to say."""
    rows = [row for run in runs for row in _scores(run)]
    skips = [(run, skip) for run in runs for skip in run.skips]
    if not rows and not skips:
        return []
    alone = len(runs) == 1
    scored = ["", *([] if alone else ["run"]), "spike score", "spikes", "at steps"]
    blocks: list[Block] = []
    if any("grad_norm_max" in row for run in runs for row in run.train):
        blocks.append(_charts(runs))
    if rows:
        blocks += [Table(scored, [_cut(row, alone) for row in rows]), EXPLANATION]
    if skips:
        table = [[run.name, *_skip(skip)] for run, skip in skips[-LISTED:]]
        some = f"the last {LISTED} of {len(skips):,}" if len(skips) > LISTED else f"{len(skips):,}"
        blocks.append(f"Skipped updates ({some}); data steps count batches in the order of the data, from 0.")
        columns = ["run", "step", "data step", "cause", "gradient norm"]
        blocks.append(Table(columns[alone:], [row[alone:] for row in table]))
    return [Section("Spikes", blocks)]


EXPLANATION = (
    f"Spike score: the share of values, one a log line, at least {DEVIATIONS:g} standard deviations away from the mean "
    f"of the last {WINDOW:,} (OLMo 2, arXiv 2501.00656)."
)


def _cut(row: Sequence[Cell], alone: bool) -> list[Cell]:
    return [row[0], *row[2:]] if alone else [*row]


def _scores(run: History) -> list[list[Cell]]:
    """Return the rows of a run: one for the loss, one for the gradient norm, where there are enough of them."""
    table: list[list[Cell]] = []
    for key, title in (("loss", "training loss"), ("grad_norm", "gradient norm")):
        rows = [row for row in run.train if key in row]
        values = [row[key] for row in rows]
        if (finite := sum(map(math.isfinite, values))) > LEAST:
            steps = [f"{rows[index]['step']:,.0f}" for index in spikes(values)]
            named = "; ".join([*(["…"] if len(steps) > LISTED else []), *steps[-LISTED:]]) or UNKNOWN
            score = len(steps) / finite
            table.append([title, run.name, Number(f"{score:.2%}", score), number(len(steps), digits=0), named])
    return table


def _skip(skip: SkipRecord) -> list[Cell]:
    norm = float(skip["grad_norm"])
    shown = number(norm, digits=2) if math.isfinite(norm) else str(norm)
    return [number(skip["step"], digits=0), number(skip["data_step"], digits=0), skip["cause"], shown]


def _charts(runs: Sequence[History]) -> Charts:
    alone = len(runs) == 1

    def curves(key: str) -> list[Curve]:
        lines = [
            curve(run, run.train, key, name="largest" if alone else run.name, look=look, smooth=False)
            for look, run in enumerate(runs)
        ]
        dots = []
        for look, run in enumerate(runs):
            rows = [{"step": float(skip["step"]), "grad_norm_max": float(skip["grad_norm"])} for skip in run.skips]
            if all("tokens" in row for row in run.train):
                steps, tokens = ([row[axis] for row in run.train] for axis in ("step", "tokens"))
                rows = [{**row, "tokens": float(np.interp(row["step"], steps, tokens))} for row in rows]
            if key == "grad_norm_max" and rows:
                name = "skipped" if alone else f"{run.name}, skipped"
                group = name if alone else run.name
                dots.append(curve(run, rows, key, name=name, group=group, look=1 if alone else look, line=False))
        return [*lines, *dots]

    charts = [
        Chart("Largest loss between log lines, nats per target", curves("loss_max"), logarithmic=True),
        Chart("Largest gradient norm between log lines (dots: skipped)", curves("grad_norm_max"), logarithmic=True),
    ]
    return Charts("spikes", charts, shared_axis(runs))
