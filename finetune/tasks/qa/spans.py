"""From the logits of a question's windows to the spans that may answer it, best first.

Which characters tokens stand for is in `windows`, whether an answer is right in `squad`. Letters: n context tokens of a
window, W windows of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from finetune.tasks.qa.windows import WindowedQuestion


class AnswerSpan(NamedTuple):
    """A part of a context that may be the answer."""

    start: int  # characters of the context before it
    end: int  # characters of the context before its end
    score: float  # logit of its first token as a start plus that of its last as an end


class Candidates(NamedTuple):
    """The answers that a model considers."""

    spans: list[AnswerSpan]  # distinct, best first; none if the context has no tokens
    no_answer: float  # score of there being no answer in any window


def candidates(
    question: WindowedQuestion, logits: Sequence[np.ndarray], *, n_best: int, max_answer_tokens: int
) -> Candidates:
    """Return the `n_best` spans of at most `max_answer_tokens` over all windows of a question.

    `logits` are those of its W sequences, (tokens, 2) each: that an answer starts and that it ends at a token. All
    spans within the context are compared, not only those between the best starts and the best ends. A span that is in
    several windows counts once, with its best score. The score of no answer is that of the sequence's first token, the
    lowest over the windows, since there is no answer only if no window has one (Devlin et al. 2019, section 4.3, as in
    its code).
    """
    found: list[tuple[float, int, int]] = []
    no_answer = np.inf
    for start, sequence in zip(question.starts, logits, strict=True):
        rows = sequence.astype(np.float64)
        no_answer = min(no_answer, float(rows[0].sum()))
        held = question.window(start)
        context = rows[question.context_start : question.context_start + len(held)]
        first, last, scores = best_spans(context[:, 0], context[:, 1], n_best=n_best, longest=max_answer_tokens)
        found += zip(scores.tolist(), (first + start).tolist(), (last + start).tolist(), strict=True)
    found.sort(key=lambda span: (-span[0], *span[1:]))
    spans: dict[tuple[int, int], AnswerSpan] = {}
    for score, first, last in found:
        begin, end = question.characters(first, last)
        if begin < end and (begin, end) not in spans:
            spans[begin, end] = AnswerSpan(begin, end, score)
    return Candidates(list(spans.values())[:n_best], no_answer)


def best_spans(
    starts: np.ndarray, ends: np.ndarray, *, n_best: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first tokens, last tokens and scores, best first, of the `n_best` spans of 1 to `longest` tokens.

    `starts` and `ends` are the logits (n,) of each token; a span's score is starts[first] + ends[last].
    """
    if not len(starts):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    beyond = np.full(longest - 1, -np.inf)  # ends behind the last token
    scores = (starts[:, None] + sliding_window_view(np.concatenate([ends, beyond]), longest)).ravel()
    kept = scores.argpartition(-n_best)[-n_best:] if len(scores) > n_best else np.arange(len(scores))
    kept = kept[scores[kept] > -np.inf]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    first, further = np.divmod(kept, longest)
    return first, first + further, scores[kept]
