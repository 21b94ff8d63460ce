"""Extractive question answering: the answer to a question is a part of its context, or there is none (SQuAD).

Questions are read in `questions` and encoded in `windows`; answers are found in `spans` and scored in `squad`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from omegaconf import MISSING
from tokenizers import Tokenizer

from finetune.answering.base import Encoded
from finetune.answering.by_head import ByHead
from finetune.data.examples import Examples
from finetune.data.records import DataSet
from finetune.model.losses import AnswerSpans, TaskLoss
from finetune.tasks.qa.page import answer_sections
from finetune.tasks.qa.questions import ROLES, Question, read_questions
from finetune.tasks.qa.spans import AnswerSpan, Candidates, candidates
from finetune.tasks.qa.windows import WindowedQuestion, split_into_windows
from finetune.tasks.squad import best_threshold, score, squad_metrics
from pretrain.errors import DataError, check
from pretrain.hub.task_heads import HeadKind
from pretrain.registry import register
from pretrain.report.page import Section


class QaMetric(StrEnum):
    """What chooses the best step, and the no-answer threshold."""

    f1 = "f1"  # mean over questions of the F1 of words
    exact_match = "exact_match"  # share of questions


@register("task", "qa")
@dataclass(kw_only=True)
class QaConfig:
    """The part of a text that answers a question about it."""

    kind: ClassVar[HeadKind] = HeadKind.span
    fixed: ClassVar[tuple[str, ...]] = ("train", "validation", "metric", "unanswerable")

    train: str = MISSING  # SQuAD's JSON, JSON lines or Parquet, or hub name, of the training set
    validation: str = MISSING  # the same of the validation set
    max_tokens: int = 384  # of a sequence: question, a window of the context, and special tokens
    stride: int = 128  # context tokens that one window shares with the next
    max_question_tokens: int = 64  # of a longer question the first are kept
    unanswerable: bool = False  # whether questions may have no answer, as in SQuAD 2.0
    no_answer_threshold: float | None = None  # logits by which no answer must beat the best; null = best on validation
    n_best: int = 20  # answers that are compared, and listed in predictions
    max_answer_tokens: int = 30  # of a predicted answer
    metric: QaMetric = QaMetric.f1  # chooses the best step and the threshold: f1 or exact_match
    columns: dict[str, str] = field(
        default_factory=lambda: {role: role for role in ROLES[:-1]} | {"answer_start": ""}
    )  # of JSON lines, Parquet and the hub; answer_start is "" where answers hold it
    max_faults: float = 0.0  # share of questions that may be bad (left out), or have answers in no window (unanswered)

    def __post_init__(self) -> None:
        for key in ("max_question_tokens", "n_best", "max_answer_tokens"):
            check(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1")
        check(self.stride >= 0, "task.stride", self.stride, "must be at least 0")
        least = self.max_question_tokens + self.stride + 1
        rule = f"must be at least {least}: task.max_question_tokens + task.stride + 1, and room for special tokens"
        check(self.max_tokens >= least, "task.max_tokens", self.max_tokens, rule)
        check(0 <= self.max_faults < 1, "task.max_faults", self.max_faults, "must be at least 0 and below 1")
        threshold = self.no_answer_threshold
        rule = "must be a finite number of logits, or null for the best on the validation set"
        check(threshold is None or math.isfinite(threshold), "task.no_answer_threshold", threshold, rule)
        rule = "is for questions without an answer; leave it out, or set task.unanswerable=true"
        check(threshold is None or self.unanswerable, "task.no_answer_threshold", threshold, rule)
        rule = f"name a column for each of {', '.join(ROLES)} (answer_start= for none)"
        named = all(self.columns.get(role) for role in ROLES[:-1])
        check(named and set(self.columns) == set(ROLES), "task.columns", self.columns, rule)

    @property
    def answering(self) -> ByHead:
        """By a head."""
        return ByHead(self)

    @property
    def variety(self) -> str:
        """It has one problem alone."""
        return ""

    @property
    def problem_type(self) -> None:
        """None: answers are parts of a text."""
        return None

    @property
    def tuned_settings(self) -> tuple[str, ...]:
        """The no-answer threshold, unless it is set or all questions have answers."""
        return ("no_answer_threshold",) if self.unanswerable and self.no_answer_threshold is None else ()

    def records(self, source: DataSet, *, labelled: bool = True) -> list[Question]:
        """Read questions, with their answers if they are `labelled`.

        In memory they are dictionaries, or pairs of question and context; one without an id gets its place.
        Raises `ConfigError` for a file or column that is not there, `DataError` for more bad questions than are
        allowed.
        """
        return read_questions(
            source, self.columns, labelled=labelled, unanswerable=self.unanswerable, max_faults=self.max_faults
        )

    def names(self, records: Sequence[Question]) -> list[str]:
        """Return the names of the two outputs of each token."""
        return ["start", "end"]

    def encode(self, records: Sequence[Question], tokenizer: Tokenizer, names: list[str]) -> Encoded:
        """Encode each question as one or more windows, with labels if it has answers, as `WindowedQuestion` records.

        Raises `ConfigError` if there is no room for a context, `DataError` if more answers than are allowed are in no
        window.
        """
        windowed, sequences, report = split_into_windows(
            records,
            tokenizer,
            max_tokens=self.max_tokens,
            stride=self.stride,
            max_question_tokens=self.max_question_tokens,
        )
        report.log(len(windowed), len(sequences))
        if len(report.cut) > self.max_faults * len(records):
            raise DataError(
                f"{len(report.cut)} of {len(records)} answers are in no window of {self.max_tokens} tokens "
                f"({', '.join(report.cut[:3])}), more than task.max_faults={self.max_faults} of them; raise "
                "task.stride above the length of the longest, or task.max_faults to train on them as unanswerable"
            )
        return Encoded(Examples.of(sequences), windowed)

    def loss(self, encoded: Encoded, names: list[str]) -> TaskLoss:
        """Return the cross-entropy of the first and the last token. Raises `DataError` for questions without labels."""
        if encoded.examples.labels is None:
            raise DataError(f"{self.train}: its questions were read without answers, so nothing can be learned")
        return AnswerSpans()

    def measure(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> dict[str, float]:
        """Return exact match and F1 as shares, for `unanswerable` also of the questions with and without an answer.

        These come with the `no_answer_threshold` that they were measured with: the configured one, or else the one that
        is best for `metric` on this very data set.
        """
        golds = [_texts(one.question) for one in encoded.records]
        found = list(self._candidates(encoded, logits))
        best = [_text(one, each.spans[0]) if each.spans else "" for one, each in found]
        if not self.unanswerable:
            return squad_metrics(best, golds)
        margins = [_no_answer_score(each) for _, each in found]
        threshold = self.no_answer_threshold
        if threshold is None:
            scores = [self._score(text, texts) for text, texts in zip(best, golds, strict=True)]
            without = [self._score("", texts) for texts in golds]
            largest = sys.float_info.max  # JSON has no infinity
            threshold = float(np.clip(best_threshold(margins, scores, without), -largest, largest))
        answers = [text if margin <= threshold else "" for text, margin in zip(best, margins, strict=True)]
        return squad_metrics(answers, golds, version_2=True) | {"no_answer_threshold": threshold}

    def predict(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield `id`, `answer`, `start`, `end` (characters of the context), `score` and `probability` of each question.

        `n_best` has the same for each of the best answers, whose probabilities sum to 1. If questions may be
        `unanswerable`, one of these is no answer: "" from null to null. It is predicted if `no_answer_score`, its score
        minus that of the best span, is above `no_answer_threshold` (0 unless it is set).
        """
        from scipy.special import softmax

        for one, found in self._candidates(encoded, logits):
            answers = [_entry(_text(one, span), span.start, span.end, span.score) for span in found.spans]
            chosen = answers[0] if answers else None
            extra: dict[str, Any] = {}
            if self.unanswerable or chosen is None:
                no_answer = _entry("", None, None, found.no_answer)
                answers.append(no_answer)
                margin = _no_answer_score(found)
                extra["no_answer_score"] = margin if chosen else None
                chosen = no_answer if chosen is None or margin > (self.no_answer_threshold or 0.0) else chosen
            shares = softmax([answer["score"] for answer in answers])
            for answer, share in zip(answers, shares.tolist(), strict=True):
                answer["probability"] = share
            answers.sort(key=lambda answer: -answer["score"])
            yield {"id": one.question.id, **chosen, **extra, "n_best": answers}

    def sections(
        self, encoded: Encoded, logits: list[np.ndarray], names: list[str], measured: Mapping[str, float]
    ) -> list[Section]:
        """Return which questions are left unanswered by the threshold of `measured`, and the worst errors."""
        threshold = measured.get("no_answer_threshold")
        predictions = replace(self, no_answer_threshold=threshold).predict(encoded, logits, names)
        return answer_sections([one.question for one in encoded.records], predictions, threshold)

    def _candidates(self, encoded: Encoded, logits: list[np.ndarray]) -> Iterator[tuple[WindowedQuestion, Candidates]]:
        rest = iter(logits)
        for one in encoded.records:
            own = list(itertools.islice(rest, len(one.starts)))  # of its windows
            yield one, candidates(one, own, n_best=self.n_best, max_answer_tokens=self.max_answer_tokens)

    def _score(self, text: str, golds: list[str]) -> float:
        return getattr(score(text, golds, version_2=True), self.metric)


def _texts(question: Question) -> list[str]:
    if question.answers is None:
        raise DataError(f"question {question.id!r} was read without answers, so predictions cannot be measured")
    return [answer.text for answer in question.answers]


def _text(one: WindowedQuestion, span: AnswerSpan) -> str:
    return one.question.context[span.start : span.end]


def _entry(text: str, start: int | None, end: int | None, score: float) -> dict[str, Any]:
    return {"answer": text, "start": start, "end": end, "score": score}


def _no_answer_score(found: Candidates) -> float:
    """Return the score of no answer minus that of the best span, or infinity if there is no span."""
    return found.no_answer - found.spans[0].score if found.spans else np.inf
