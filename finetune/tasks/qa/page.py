"""What a report page says of answers to questions: F1 and exact match by lengths, the threshold, the worst errors.

Holds the sections; spans and the threshold are found by the task, scores are `squad`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from finetune.report.figures import Panel, draw_bins, draw_scores
from finetune.report.page import WORST, Picture, Section, clipped, quantile_bins, value_text
from finetune.tasks.qa.metrics import Score
from finetune.tasks.qa.questions import Question
from pretrain.report.markdown import literal, table

MARGIN = 90  # characters of the context that are shown before and after a span
EXACT, F1 = "exact match", "F1"


class Answered(NamedTuple):
    """A question and what a model answered."""

    question: Question  # with its answers
    context_tokens: int
    span: tuple[int, int] | None  # characters of the context; None: predicted is that there is no answer
    score: float  # sum of logits
    probability: float  # among the n best
    worth: Score
    no_answer_score: float | None  # by how much no answer is above the best span; None: not asked, or no span

    @property
    def answer_words(self) -> int:
        """Words of the first answer of the data, 0 if there is none."""
        answers = self.question.answers
        return len(answers[0].text.split()) if answers else 0


def sections(answered: Sequence[Answered], threshold: float | None) -> list[Section]:
    """Return lengths, the questions without answers and the worst errors; with a `threshold` some may have none."""
    found = [_by_length(answered)]
    if threshold is not None:
        found.append(_no_answer(answered, threshold))
    return [*found, _worst(answered)]


def _by_length(answered: Sequence[Answered]) -> Section:
    answerable = [one for one in answered if one.question.answers]
    lengths = {
        "tokens of the context": (answered, [one.context_tokens for one in answered]),
        "words of the answer": (answerable, [one.answer_words for one in answerable]),
    }
    panels, tables = [], []
    for title, (questions, values) in lengths.items():
        if bins := quantile_bins(np.array(values, dtype=np.int64)):
            groups = [(each.name, [questions[at] for at in each.members]) for each in bins]
            panels.append(_panel(f"By {title}", groups))
            tables.append(_table(title, groups))
    picture = Picture("by-length", "Exact match and F1 by length", lambda path: draw_bins(panels, path))
    told = "Bins hold about as many questions each; the answer is the first of the data."
    return Section("By length", [picture, told, *tables])


def _no_answer(answered: Sequence[Answered], threshold: float) -> Section:
    kinds = {
        "with an answer": [one for one in answered if one.question.answers],
        "without": [one for one in answered if not one.question.answers],
    }
    groups = [(name, questions) for name, questions in kinds.items() if questions]
    scores = {
        name: np.array([one.no_answer_score for one in questions if one.no_answer_score is not None])
        for name, questions in groups
    }
    title = "Score of no answer, minus that of the best span"
    panel = _panel("Questions", groups)
    left = Picture("no-answer", "Exact match and F1, with and without an answer", lambda path: draw_bins([panel], path))
    right = Picture("threshold", title, lambda path: draw_scores(scores, threshold, title, path))
    told = (
        f"Predicted is that there is no answer where its score is above the best span's by more than the threshold, "
        f"{value_text(threshold)}."
    )
    rows = [
        [name, f"{len(questions):,}", f"{sum(one.span is None for one in questions):,}", *_cells(questions)]
        for name, questions in groups
    ]
    header = ["questions", "there are", "predicted to have none", EXACT, F1]
    return Section("Questions without an answer", [left, right, told, table(header, rows)])


def _worst(answered: Sequence[Answered]) -> Section:
    wrong = [one for one in answered if not one.worth.exact_match]
    if not wrong:
        return Section("Worst errors", ["There is none."])
    wrong.sort(key=lambda one: (one.worth.f1, -one.probability))
    told = (
        f"{len(wrong):,} of {len(answered):,} answers do not match exactly. Those that share the fewest words with an "
        "answer of the data come first, of these the most confident."
    )
    return Section(
        "Worst errors", [told, "\n\n".join(_error(place, one) for place, one in enumerate(wrong[:WORST], 1))]
    )


def _error(place: int, one: Answered) -> str:
    """Return a numbered item: the question, what is predicted and what would be right, each in its context."""
    question = one.question
    lines = [f"{place}. {clipped(question.text)} ({literal(question.id)})"]
    values = f"F1 {one.worth.f1:.2f}, probability {one.probability:.3f}, score {one.score:.2f}"
    shown = _stretch(question.context, *one.span) if one.span else "*no answer*"
    lines.append(f"predicted ({values}): {shown}")
    texts = list(dict.fromkeys(answer.text for answer in question.answers or ()))
    if question.answers:
        first = question.answers[0]
        lines.append(f"in the data: {_stretch(question.context, first.start, first.end)}")
        if texts[1:]:
            lines.append(f"or: {'; '.join(clipped(text) for text in texts[1:])}")
    else:
        lines.append("in the data: *no answer*")
    return "\n    - ".join(lines)


def _stretch(context: str, start: int, end: int) -> str:
    """Return characters `start` to `end` of a context in bold, with what is around them."""
    before, after = context[max(start - MARGIN, 0) : start], context[end : end + MARGIN]
    left, right = "…" * (start > MARGIN), "…" * (end + MARGIN < len(context))
    # Asterisks would not do: Markdown does not take them for emphasis in the middle of a word, or next to quotes.
    return f"{left}{literal(before)}<b>{literal(context[start:end])}</b>{literal(after)}{right}"


def _panel(title: str, groups: list[tuple[str, list[Answered]]]) -> Panel:
    means = [_means(questions) for _, questions in groups]
    values = {EXACT: [mean.exact_match for mean in means], F1: [mean.f1 for mean in means]}
    return Panel(title, [name for name, _ in groups], [len(questions) for _, questions in groups], values)


def _table(title: str, groups: list[tuple[str, list[Answered]]]) -> str:
    rows = [[name, f"{len(questions):,}", *_cells(questions)] for name, questions in groups]
    return table([title, "questions", EXACT, F1], rows)


def _cells(questions: list[Answered]) -> list[str]:
    return [f"{value:.3f}" for value in _means(questions)]


def _means(questions: list[Answered]) -> Score:
    columns = np.array([one.worth for one in questions]).mean(0)
    return Score(*columns.tolist())
