"""From the logits of a question's windows to the spans that may answer it, best first.

Holds the search over spans of tokens; characters of tokens are in `windows`, whether an answer is right in `squad`.
Letters: n tokens of a window that are context's, W windows of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from finetune.tasks.qa.windows import Windowed


class Span(NamedTuple):
    """A part of a context that may be the answer."""

    start: int  # characters of the context before it
    end: int  # the same of its end
    score: float  # logit of its first token as a start plus that of its last as an end


class Candidates(NamedTuple):
    """What a model thinks of a question."""

    spans: list[Span]  # distinct, best first; none if the context has no tokens
    no_answer: float  # score of there being no answer in any window


def candidates(one: Windowed, logits: Sequence[np.ndarray], *, n_best: int, max_answer_tokens: int) -> Candidates:
    """Return the `n_best` spans of at most `max_answer_tokens` over all windows of a question.

    `logits` are those of its W sequences, (tokens, 2) each: of beginning and of ending an answer. All spans within the
    context are compared, not only those between the best starts and the best ends. A span that several windows hold
    counts once, with its best score. There is no answer if no window has one, so the score of that is the least over
    windows of the score of the sequence's first token (Devlin et al. 2019, section 4.3, as its code has it).
    """
    found: list[tuple[float, int, int]] = []
    no_answer = np.inf
    for start, sequence in zip(one.starts, logits, strict=True):
        rows = sequence.astype(np.float64)
        no_answer = min(no_answer, float(rows[0].sum()))
        held = one.window(start)
        context = rows[one.place : one.place + len(held)]
        first, last, scores = best_spans(context[:, 0], context[:, 1], n_best=n_best, longest=max_answer_tokens)
        found += zip(scores.tolist(), (first + start).tolist(), (last + start).tolist(), strict=True)
    found.sort(key=lambda span: (-span[0], *span[1:]))
    spans: dict[tuple[int, int], Span] = {}
    for score, first, last in found:
        begin, end = one.characters(first, last)
        if begin < end and (begin, end) not in spans:
            spans[begin, end] = Span(begin, end, score)
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
