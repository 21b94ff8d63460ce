"""The report of written texts: their lengths, examples beside those of the data, and the worst ones.

Predictions are those of the task's `predict`, scores those of `metrics`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from finetune.report.mistakes import TEXT_ROOM, WORST, Mistake, worst_errors
from finetune.tasks.seq2seq.metrics import sentence_scores, signatures
from finetune.tasks.seq2seq.pairs import Pair
from pretrain.report.page import Cell, Number, Section, Style, Styled, Table, number, shortened

EXAMPLES = 50  # that a page shows


def text_sections(pairs: Sequence[Pair], predictions: Sequence[str], metrics: Collection[str]) -> list[Section]:
    """Return the sections on what was written for pairs that have targets, and how the `metrics` of it count."""
    targets = [pair.target or "" for pair in pairs]
    scores = sentence_scores(predictions, targets)
    mistakes = [
        Mistake((-score,), [number(score, digits=1), *_texts(prediction, target), *_source(pair)])
        for pair, prediction, target, score in zip(pairs, predictions, targets, scores, strict=True)
        if prediction.strip() != target.strip()
    ]
    return [
        _lengths([pair.source for pair in pairs], targets, predictions, metrics),
        _examples(pairs, predictions, targets, scores),
        worst_errors(mistakes, len(pairs), "chrF"),
    ]


def _lengths(
    sources: Sequence[str], targets: Sequence[str], predictions: Sequence[str], metrics: Collection[str]
) -> Section:
    """Return how long texts are: a model that stops too early, or never, is seen at once."""
    sizes = {
        name: np.array([len(text) for text in texts])
        for name, texts in (("source", sources), ("in the data", targets), ("predicted", predictions))
    }
    rows: list[list[Cell]] = [
        [name, *(Number(f"{value:,.0f}", float(value)) for value in (found.mean(), np.median(found), found.max()))]
        for name, found in sizes.items()
    ]
    ratio = sizes["predicted"].sum() / max(sizes["in the data"].sum(), 1)
    empty = int((sizes["predicted"] == 0).sum())
    said = f"Predictions have {ratio:.2f} times the characters of the texts in the data; {empty:,} of them are empty."
    counted = [f"sacreBLEU counts {name} so: {signature}." for name, signature in signatures(metrics).items()]
    return Section("Lengths", [said, Table(["characters", "mean", "median", "longest"], rows), *counted])


def _examples(
    pairs: Sequence[Pair], predictions: Sequence[str], targets: Sequence[str], scores: Sequence[float]
) -> Section:
    """Return examples from all over the data set, in its order."""
    chosen = range(0, len(pairs), -(-len(pairs) // EXAMPLES))
    rows: list[list[Cell]] = [
        [*_source(pairs[one]), *_texts(predictions[one], targets[one]), number(scores[one], digits=1)] for one in chosen
    ]
    said = f"{len(rows):,} of {len(pairs):,}, from all over the data set."
    header = ["source", "where", "predicted", "in the data", "chrF"]
    return Section("Examples", [said, Table(header, rows, first=WORST)])


def _source(pair: Pair) -> list[Cell]:
    return [shortened(pair.source, TEXT_ROOM), pair.place]


def _texts(prediction: str, target: str) -> list[Cell]:
    """Return what was written, and what the data have."""
    written = shortened(prediction, TEXT_ROOM) if prediction.strip() else Styled("nothing", Style.emphasis)
    return [written, shortened(target, TEXT_ROOM)]
