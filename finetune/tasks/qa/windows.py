"""Questions and contexts as tokens: windows over long contexts, and answers as spans of tokens and back.

Questions are read in `questions`; which span is predicted is found in `spans`. Letters: T tokens of a context, W
windows of a question.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from finetune.data.examples import Example
from finetune.tasks.base import encodings
from finetune.tasks.offsets import tokenized
from finetune.tasks.qa.questions import Answer, Question
from pretrain.errors import DataError, check

NO_ANSWER = [0, 0]  # label of a window without the answer: first and last token of the span

log = logging.getLogger(__name__)


class PairTemplate:
    """The special tokens that a tokenizer puts around a question and the context that follows it.

    They are read off the first question and context that both have tokens. Raises `DataError` if there are none.
    """

    def __init__(self, tokenizer: Tokenizer, questions: Sequence[Question]) -> None:
        pairs = (tokenizer.encode(question.text, question.context) for question in questions)
        pair = next((pair for pair in pairs if {0, 1} <= set(pair.sequence_ids)), None)
        if pair is None:
            raise DataError(
                "the tokenizer makes no tokens of these questions and contexts: is it for another language?"
            )
        tokens = zip(pair.sequence_ids, pair.ids, pair.type_ids, strict=True)
        runs = (zip(*run, strict=True) for _, run in itertools.groupby(tokens, key=itemgetter(0)))
        self._runs = [(owners[0], ids, types) for owners, ids, types in runs]
        self.num_tokens = pair.sequence_ids.count(None)  # tokens that are neither question nor context
        self.num_before_context = pair.sequence_ids[: pair.sequence_ids.index(1)].count(None)

    def fill(self, question: list[int], context: list[int], label: list[int] | None) -> Example:
        """Return the sequence of a question's tokens and those of a window."""
        example = Example([], [], label)
        for owner, special, types in self._runs:
            tokens = special if owner is None else (question, context)[owner]
            example.tokens.extend(tokens)
            example.segments.extend(types if owner is None else types[:1] * len(tokens))
        return example


class TokenizedContext(NamedTuple):
    """The tokens of a context, which its questions share."""

    ids: list[int]  # T
    offsets: np.ndarray  # (T, 2) int32, the characters of each token: the first, and the one after the last

    def tokens_of(self, answer: Answer) -> range:
        """Return the tokens whose characters are the fewest that hold an answer, and of equals all; none if T is 0.

        Without a token that has a character of the answer it is the nearest one.
        """
        if not self.ids:
            return range(0)
        starts, ends = self.offsets.T
        touching = (ends > answer.start) & (starts < answer.end)
        start = starts[touching & (starts <= answer.start)].max(initial=0)
        end = ends[touching & (ends >= answer.end)].min(initial=np.iinfo(np.int32).max)
        found = np.flatnonzero(touching & (starts >= start) & (ends <= end))
        if not len(found):  # several overlap, and each holds all of it; or none touches it
            whole = (starts <= answer.start) & (ends >= answer.end)
            choice = np.flatnonzero(whole) if whole.any() else np.arange(len(self.ids))
            reach = np.maximum(ends, answer.end) - np.minimum(starts, answer.start)
            found = choice[[np.argmin(reach[choice])]]
        return range(int(found[0]), int(found[-1]) + 1)


@dataclass(frozen=True, kw_only=True)
class WindowedQuestion:
    """A question and its windows, each of which is a sequence of tokens: the question, then a part of the context."""

    question: Question
    context: TokenizedContext
    context_start: int  # position of the first context token in each sequence
    room: int  # context tokens of a window; the last one may have fewer
    starts: range  # W, the first context token of each window

    def window(self, start: int) -> range:
        """Return the tokens of the context that the window at `start` holds."""
        return range(start, min(start + self.room, len(self.context.ids)))

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """Return where the text of the context's tokens `first` to `last` starts and ends, without white space.

        Tokens of many tokenizers include the space before a word, which is no part of an answer.
        """
        start, end = int(self.context.offsets[first, 0]), int(self.context.offsets[last, 1])
        text = self.question.context[start:end]
        return end - len(text.lstrip()), start + len(text.rstrip())


@dataclass
class SplitReport:
    """Ids of the questions that were not encoded in full; of several answers the first counts, the training target."""

    shortened: list[str] = field(default_factory=list)  # questions longer than is allowed
    cut: list[str] = field(default_factory=list)  # answers that are whole in no window
    inexact: list[str] = field(default_factory=list)  # answers that start or end inside a token, or in none

    def log(self, num_questions: int, num_windows: int) -> None:
        """Write the counts to the log."""
        log.info(
            "%d questions in %d windows; %d questions shortened to task.max_question_tokens, %d answers in no window, "
            "%d answers that start or end inside a token%s",
            *(num_questions, num_windows, len(self.shortened), len(self.cut), len(self.inexact)),
            f" ({', '.join(self.inexact[:3])})" if self.inexact else "",
        )


def split_into_windows(
    questions: Sequence[Question], tokenizer: Tokenizer, *, max_tokens: int, stride: int, max_question_tokens: int
) -> tuple[list[WindowedQuestion], list[Example], SplitReport]:
    """Return the questions with their windows, the sequences of all windows in order, and what was not kept.

    A sequence has at most `max_tokens`; consecutive windows share `stride` tokens of the context, and of a question the
    first `max_question_tokens` are kept. If the questions have answers, the label of a sequence is the positions of the
    first and the last token of the first answer, or `NO_ANSWER` where the window does not hold all of it.

    The tokenizer has a template for pairs and neither truncates nor pads. Raises `ConfigError` if there is no room for
    more of the context than the stride, `DataError` if the tokenizer makes no tokens.
    """
    assert tokenizer.truncation is None and tokenizer.padding is None, "answers would be cut without a word"
    template = PairTemplate(tokenizer, questions)
    least = max_tokens - template.num_tokens - max_question_tokens  # context tokens beside the longest question
    check(stride < least, "task.stride", stride, f"must be below {least}, what task.max_tokens leaves for the context")
    texts = list(dict.fromkeys(question.context for question in questions))
    contexts = {
        text: TokenizedContext(found.encoding.ids, found.offsets)
        for text, found in zip(texts, tokenized(tokenizer, texts), strict=True)
    }
    windowed: list[WindowedQuestion] = []
    sequences: list[Example] = []
    report = SplitReport()
    encoded = encodings(tokenizer, [question.text for question in questions], special_tokens=False)
    for question, encoding in zip(questions, encoded, strict=True):
        ids, context = encoding.ids[:max_question_tokens], contexts[question.context]
        if len(encoding.ids) > max_question_tokens:
            report.shortened.append(question.id)
        room = max_tokens - template.num_tokens - len(ids)
        one = WindowedQuestion(
            question=question,
            context=context,
            context_start=template.num_before_context + len(ids),
            room=room,
            starts=range(0, max(len(context.ids) - stride, 1), room - stride),
        )
        if not one.context_start:  # the first token stands for no answer
            raise DataError(f"question {question.id!r}: the tokenizer makes no tokens of its text; leave it out")
        for start, label in zip(one.starts, _labels(one, report), strict=True):
            window = one.window(start)
            sequences.append(template.fill(ids, context.ids[window.start : window.stop], label))
        windowed.append(one)
    return windowed, sequences, report


def _labels(one: WindowedQuestion, report: SplitReport) -> Sequence[list[int] | None]:
    """Return the label of each window, and note an answer that is not kept exactly."""
    question = one.question
    if question.answers is None:
        return [None] * len(one.starts)
    if not question.answers:
        return [NO_ANSWER] * len(one.starts)
    answer = question.answers[0]
    held = one.context.tokens_of(answer)
    labels = [
        [one.context_start + held[0] - start, one.context_start + held[-1] - start]
        if held and held[0] in (window := one.window(start)) and held[-1] in window
        else NO_ANSWER
        for start in one.starts
    ]
    if all(label is NO_ANSWER for label in labels):
        report.cut.append(question.id)
    elif one.characters(held[0], held[-1]) != (answer.start, answer.end):
        report.inexact.append(question.id)
    return labels
