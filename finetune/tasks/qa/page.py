"""The report of answers to questions: which are left unanswered, and the worst errors in their contexts.

Predictions are those of the task's `predict`, scores those of `squad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from finetune.report.confusion import confusion
from finetune.report.mistakes import TEXT_ROOM, Mistake, metric, worst_errors
from finetune.tasks.qa.questions import Question
from finetune.tasks.squad import score
from pretrain.report.page import Number, Section, Style, Styled, plain, shortened

MARGIN = 90  # characters of the context that are shown before and after a span
ANSWER, NO_ANSWER = "answer", "no answer"


def answer_sections(
    questions: Sequence[Question], predictions: Iterable[dict[str, Any]], threshold: float | None
) -> list[Section]:
    """Return the worst errors, after the questions with and without an answer if there is a no-answer `threshold`."""
    kinds, mistakes = [], []
    for question, found in zip(questions, predictions, strict=True):
        kinds.append(NO_ANSWER if found["start"] is None else ANSWER)
        texts = list(dict.fromkeys(answer.text for answer in question.answers or ()))
        scores = score(found["answer"], texts, version_2=threshold is not None)
        if scores.exact_match:
            continue
        predicted = in_data = (Styled(NO_ANSWER, Style.emphasis),)
        if found["start"] is not None:
            predicted = _in_context(question.context, found["start"], found["end"])
        if question.answers:
            first = _in_context(question.context, question.answers[0].start, question.answers[0].end)
            in_data = (*first, *(f"; or: {shortened(text, TEXT_ROOM)}" for text in texts[1:]))
        shown = Number(f"{scores.f1:.2f}, {found['probability']:.3f}", scores.f1 - found["probability"])
        cells = [shown, predicted, in_data, shortened(question.text, TEXT_ROOM), question.id]
        mistakes.append(Mistake((-scores.f1, found["probability"]), cells))
    errors = worst_errors(mistakes, len(questions), "F1 and probability")
    if threshold is None:
        return [errors]
    answerable = [ANSWER if question.answers else NO_ANSWER for question in questions]
    matrix = confusion(answerable, kinds, [ANSWER, NO_ANSWER])
    rule = (
        "No answer is predicted where its score exceeds that of the best span by more than the threshold, "
        f"{plain(metric(threshold))}."
    )
    return [replace(matrix, blocks=[rule, *matrix.blocks]), errors]


def _in_context(context: str, start: int, end: int) -> tuple[str | Styled, ...]:
    """Return characters `start` to `end` of a context set off, with what is around them."""
    before, after = context[max(start - MARGIN, 0) : start], context[end : end + MARGIN]
    left, right = "…" * (start > MARGIN), "…" * (end + MARGIN < len(context))
    return (f"{left}{before}", Styled(context[start:end], Style.marked), f"{after}{right}")
