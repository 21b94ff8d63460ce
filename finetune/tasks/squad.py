"""Exact match and F1 of answers to questions, as SQuAD's official scripts count them, and the no-answer threshold.

Answers arrive here as text; spans and logits are elsewhere. `qa` and `seq2seq` are scored by it. All values are shares;
the official scripts print percentages. Sources: Rajpurkar et al. 2016, arXiv 1606.05250 (1.1); Rajpurkar et al. 2018,
arXiv 1806.03822 (2.0, with questions that have no answer).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII only: dashes and quotes of Unicode stay
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Score(NamedTuple):
    """The scores of the answer to one question."""

    exact_match: float  # 1.0 or 0.0
    f1: float  # share, over words


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, without English articles, single spaces between words, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def score(prediction: str, answers: Sequence[str], *, version_2: bool) -> Score:
    """The best values that `prediction` reaches with any of `answers`.

    By the rules of 2.0 the right prediction for a question without answers is an empty one, and answers that are empty
    after normalisation do not count. By those of 1.1 every answer counts, an empty one has an F1 of 0.0 with any
    prediction, and a question without answers raises `ValueError`.
    """
    if not (answers or version_2):
        raise ValueError("a question without answers is scored by the rules of SQuAD 2.0 only: version_2=True")
    words = normalise(prediction).split()
    references = [normalise(answer).split() for answer in answers]
    if version_2:
        references = [reference for reference in references if reference]
        if not references:
            return Score(float(not words), float(not words))
    return Score(float(words in references), max(_f1(words, reference) for reference in references))


def squad_metrics(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, version_2: bool = False
) -> dict[str, float]:
    """Means over questions, as shares: `exact_match` and `f1` of one prediction and some answers per question.

    With `version_2` also `has_answer_exact_match`, `has_answer_f1`, `no_answer_exact_match`, `no_answer_f1`: the means
    over questions with and without answers, each where there is such a question. Raises `ValueError` for lengths that
    differ and for no questions.
    """
    if len(predictions) != len(answers) or not answers:
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} questions: one for each, at least one")
    scores = [score(guess, golds, version_2=version_2) for guess, golds in zip(predictions, answers, strict=True)]
    values = _means(scores, "")
    if version_2:
        values |= _means([one for one, golds in zip(scores, answers, strict=True) if golds], "has_answer_")
        values |= _means([one for one, golds in zip(scores, answers, strict=True) if not golds], "no_answer_")
    return values


def best_threshold(no_answer_scores: ArrayLike, scores_with_answer: ArrayLike, scores_without: ArrayLike) -> float:
    """The threshold with the best mean when questions whose no-answer score is above it are left unanswered.

    All three are [questions]: the score of no answer minus that of the best span (logits), inf where there is no span;
    the exact match or F1 of that span; the same of an empty prediction (equal to it where there is no span). The result
    is the middle of the first interval of best thresholds, so that rounding moves no question across it: -inf where it
    is best to answer nothing, inf where it is best to answer everything. The official sweep takes the score at the
    lower end, and may separate questions of equal score. Raises `ValueError` for shapes that differ, no questions or
    NaN.
    """
    scores = np.asarray(no_answer_scores, np.float64)
    answered, unanswered = np.asarray(scores_with_answer, np.float64), np.asarray(scores_without, np.float64)
    if scores.ndim != 1 or not scores.shape == answered.shape == unanswered.shape or not scores.size:
        raise ValueError(f"shapes {scores.shape}, {answered.shape}, {unanswered.shape}: all [questions], at least one")
    if np.isnan(scores).any():
        raise ValueError("a no-answer score is NaN: the model's outputs are not finite")
    order = np.argsort(scores, kind="stable")
    gains = np.cumsum((answered - unanswered)[order])  # of a threshold at each score, over answering nothing
    ends = np.append(scores[order][1:] != scores[order][:-1], True)  # the last of the questions of equal score
    gains, scores = gains[ends], scores[order][ends]
    best = int(np.argmax(gains))
    if gains[best] <= 0:
        return -math.inf
    worse = np.flatnonzero(gains[best:] < gains[best])
    return float((scores[best] + scores[best + worse[0]]) / 2) if worse.size else math.inf


def _f1(words: list[str], reference: list[str]) -> float:
    shared = (Counter(words) & Counter(reference)).total()
    return 2 * shared / (len(words) + len(reference)) if shared else 0.0


def _means(scores: list[Score], prefix: str) -> dict[str, float]:
    """Means that do not depend on the order of questions; nothing for no scores."""
    columns = zip(Score._fields, zip(*scores, strict=True), strict=False)
    return {f"{prefix}{name}": math.fsum(column) / len(column) for name, column in columns}
