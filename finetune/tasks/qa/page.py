"""The report of answers to questions: which are left unanswered, and the worst errors in their contexts.

Predictions are those of the task's `predict`, scores those of `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finetune.report.confusion import confusion
from finetune.report.page import Mistake, Section, clipped, value_text, worst_errors
from finetune.tasks.qa.metrics import score
from finetune.tasks.qa.questions import Question
from pretrain.report.markdown import literal

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
        predicted = in_data = f"*{NO_ANSWER}*"
        if found["start"] is not None:
            predicted = _in_context(question.context, found["start"], found["end"])
        if question.answers:
            first = _in_context(question.context, question.answers[0].start, question.answers[0].end)
            in_data = "; or: ".join([first, *map(clipped, texts[1:])])
        shown = f"{scores.f1:.2f}, {found['probability']:.3f}"
        cells = [shown, predicted, in_data, clipped(question.text), literal(question.id)]
        mistakes.append(Mistake((-scores.f1, found["probability"]), cells))
    errors = worst_errors(mistakes, len(questions), "F1 and probability")
    if threshold is None:
        return [errors]
    answerable = [ANSWER if question.answers else NO_ANSWER for question in questions]
    matrix = confusion(answerable, kinds, [ANSWER, NO_ANSWER])
    rule = (
        "No answer is predicted where its score exceeds that of the best span by more than the threshold, "
        f"{value_text(threshold)}."
    )
    return [matrix._replace(text=f"{rule}\n\n{matrix.text}"), errors]


def _in_context(context: str, start: int, end: int) -> str:
    """Return characters `start` to `end` of a context in bold, with what is around them."""
    before, after = context[max(start - MARGIN, 0) : start], context[end : end + MARGIN]
    left, right = "…" * (start > MARGIN), "…" * (end + MARGIN < len(context))
    # Asterisks would not do: Markdown does not take them for emphasis in the middle of a word, or next to quotes.
    return f"{left}{literal(before)}<b>{literal(context[start:end])}</b>{literal(after)}{right}"
