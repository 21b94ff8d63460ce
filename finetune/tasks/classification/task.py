"""Classification: a class, a set of labels, or a number for a text or a pair of texts.

Files are read by `finetune.data`; formulas are in `finetune.model.losses` and `metrics`. Letters: E examples, C
outputs of the head.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np
from omegaconf import MISSING
from tokenizers import Encoding, Tokenizer

from finetune.answering.base import Encoded
from finetune.answering.by_head import ByHead
from finetune.data.examples import Example, Examples
from finetune.data.records import DataSet, Record, name_of, read_records
from finetune.data.tables import Delimiter
from finetune.model.losses import ClassWeights, CrossEntropy, MultiLabel, Regression, TaskLoss, balanced_weights
from finetune.tasks.base import check_classes, encodings, shortlist
from finetune.tasks.classification import page
from finetune.tasks.classification.labels import (
    Label,
    LabelledText,
    as_target,
    label_name,
    label_names,
    label_set,
    regression_target,
)
from finetune.tasks.classification.metrics import classification_metrics, multi_label_metrics, regression_metrics
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.errors import ConfigError, DataError, check
from pretrain.hub.task_heads import HeadKind
from pretrain.registry import register
from pretrain.report.page import Section

log = logging.getLogger(__name__)


class Problem(StrEnum):
    """What is answered."""

    single_label = "single_label"  # one label of several
    multi_label = "multi_label"  # any number of labels
    regression = "regression"  # a number


_PROBLEM_TYPES = {
    Problem.single_label: "single_label_classification",
    Problem.multi_label: "multi_label_classification",
    Problem.regression: "regression",
}
METRICS = {
    Problem.single_label: ["accuracy", "f1", "f1_macro", "f1_micro", "matthews"],
    Problem.multi_label: ["f1_macro", "f1_micro", "accuracy"],
    Problem.regression: ["spearman", "pearson"],
}
"""The metrics that may choose the best step: more is better. The first one does if none is set."""


@dataclass(kw_only=True)
class TextColumns:
    """The columns of a data set of texts."""

    text: str = "text"  # column of the text
    text_pair: str | None = None  # column of the second text of a pair; null: texts stand alone
    label: str = "label"  # column of the label, the labels or the number


@register("task", "classification")
@dataclass(kw_only=True)
class ClassificationConfig:
    """A class, a set of labels, or a number for a text or a pair of texts."""

    kind: ClassVar[HeadKind] = HeadKind.sequence
    fixed: ClassVar[tuple[str, ...]] = (
        *("train", "validation", "metric", "problem", "labels"),
        *("label_smoothing", "class_weights"),
    )
    tuned_settings: ClassVar[tuple[str, ...]] = ()

    train: str = MISSING  # file (CSV, TSV, JSON lines, Parquet), or org/name:split, of the training set
    validation: str = MISSING  # the same of the validation set
    columns: TextColumns = field(default_factory=TextColumns)
    header: list[str] = field(default_factory=list)  # columns of CSV and TSV files whose first line does not name them
    delimiter: Delimiter = Delimiter.auto  # between cells of CSV and TSV: auto, comma, semicolon, tab or pipe
    problem: Problem = Problem.single_label  # what is answered: single_label, multi_label or regression
    labels: list[str] = field(default_factory=list)  # in their order; empty: as the training set has them, or sorted
    label_separator: str = ","  # between the labels of a cell, for multi_label
    max_tokens: int = 512  # of a text or a pair; what is longer is cut
    max_faults: float = 0.0  # share of a data set's records that may be bad and left out
    label_smoothing: float = 0.0  # share of a target's probability that is spread over all classes
    class_weights: ClassWeights = ClassWeights.none  # how examples count: none (alike), or balanced over classes
    metric: str = ""  # chooses the best step; empty: accuracy, or f1_macro for multi_label, spearman for regression

    def __post_init__(self) -> None:
        known = METRICS[self.problem]
        self.metric = self.metric or known[0]
        rule = f"must be one of {', '.join(known)} for task.problem={self.problem}"
        check(self.metric in known, "task.metric", self.metric, rule)
        check(self.max_tokens > 0, "task.max_tokens", self.max_tokens, "must be above 0")
        check(0 <= self.max_faults < 1, "task.max_faults", self.max_faults, "must be at least 0 and below 1")
        check(0 <= self.label_smoothing < 1, "task.label_smoothing", self.label_smoothing, "must be in [0, 1)")
        check(bool(self.label_separator), "task.label_separator", repr(self.label_separator), "must not be empty")
        check(len(set(self.labels)) == len(self.labels), "task.labels", self.labels, "must differ from one another")
        if self.problem is Problem.single_label:
            check(len(self.labels) != 1, "task.labels", self.labels, "name at least two, or none for all there are")
        if self.problem is not Problem.single_label:
            rule = f"is for task.problem=single_label; leave it out for {self.problem}"
            check(self.label_smoothing == 0, "task.label_smoothing", self.label_smoothing, rule)
            check(self.class_weights is ClassWeights.none, "task.class_weights", self.class_weights, rule)
        if self.problem is Problem.regression:
            check(not self.labels, "task.labels", self.labels, "numbers have no labels; leave it out for regression")

    @property
    def answering(self) -> ByHead:
        """By a head."""
        return ByHead(self)

    @property
    def variety(self) -> str:
        """The problem."""
        return self.problem.value

    @property
    def problem_type(self) -> str:
        """The problem, as `transformers` calls it."""
        return _PROBLEM_TYPES[self.problem]

    def records(self, source: DataSet, *, labelled: bool = True) -> list[LabelledText]:
        """Read a data set, in memory texts, pairs or dictionaries; without `labelled` it needs no column of labels.

        Raises `ConfigError` for a file or column that is not there, `DataError` for more bad records than are allowed.
        """
        columns = {"text": self.columns.text}
        if self.columns.text_pair is not None:
            columns["text_pair"] = self.columns.text_pair
        if labelled:
            columns["label"] = self.columns.label
        name = name_of(source)
        bad_records = BadRecords(name, allowed=self.max_faults)
        texts = []
        for record in read_records(source, columns, bad_records, header=self.header, delimiter=self.delimiter):
            with bad_records.counted(record.place):
                texts.append(self._text(record))
        bad_records.settle(len(texts))
        _warn_of_contradictions(name, texts)
        return texts

    def names(self, records: Sequence[LabelledText]) -> list[str]:
        """Return the labels in the order of their indices: as set, or as the data set names its classes, or sorted.

        Sorted are integers by value, others by name. For regression it is the name of the number. Raises `DataError` if
        all examples have the same label.
        """
        labels = {record.label for record in records}
        if self.problem is Problem.single_label and self.labels:
            if not labels & set(self.labels):
                rule = f"must be among those of the training set, {shortlist(label_names(labels))}; correct them"
                raise ConfigError(f"task.labels={shortlist(self.labels)}: {rule}")
            labels &= set(self.labels)  # others are bad records
        if len(labels) < 2:
            only = ", ".join(f"{label!r:.80}" for label in labels) or "none"
            raise DataError(f"task.train: all examples have the same label, {only}: there is nothing to learn")
        if self.problem is Problem.regression:
            return [self.columns.label]
        names = self.labels or list(records[0].classes) or label_names(labels)
        if self.metric == "f1" and len(names) != 2:
            raise ConfigError(f"task.metric=f1: is for two labels, there are {len(names)}; choose f1_macro or f1_micro")
        return names

    def encode(self, records: Sequence[LabelledText], tokenizer: Tokenizer, names: list[str]) -> Encoded:
        """Encode texts, one sequence each, cut to `max_tokens`, the longer text of a pair first.

        Leaves out records whose labels are not among the names. Raises `DataError` if there are more of these than are
        allowed, `ConfigError` if a sequence has no room for text beside the special tokens.
        """
        self._check_room(tokenizer)
        if records and not self.labels and self.problem is not Problem.regression:
            check_classes(records[0].place, records[0].classes, names, self.train)
        indices = {name: index for index, name in enumerate(names)}
        bad_records = BadRecords("examples", allowed=self.max_faults)
        kept: list[LabelledText] = []
        examples: list[Example] = []
        num_cut = 0
        for record, encoding in self._encodings(records, tokenizer):
            with bad_records.counted(record.place):
                target = as_target(record.label, indices)
                if not encoding.ids:  # a tokenizer without special tokens drops letters that it does not know
                    raise BadRecordError("no token", f"{record.text!a:.80}")
                num_cut += bool(encoding.overflowing)
                kept.append(record)
                examples.append(Example(encoding.ids, encoding.type_ids, target))
        bad_records.settle(len(kept))
        if num_cut:
            log.info("%d of %d texts are longer than task.max_tokens=%d: cut", num_cut, len(kept), self.max_tokens)
        return Encoded(Examples.of(examples), kept)

    def loss(self, encoded: Encoded, names: list[str]) -> TaskLoss:
        """Return what training minimises, with balanced weights of the classes of `encoded` if these are set."""
        match self.problem:
            case Problem.multi_label:
                return MultiLabel()
            case Problem.regression:
                return Regression()
            case Problem.single_label if self.class_weights is ClassWeights.none:
                return CrossEntropy(smoothing=self.label_smoothing)
        weights = balanced_weights(_labels(encoded), names, of="example")
        return CrossEntropy(smoothing=self.label_smoothing, weights=weights)

    def measure(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> dict[str, float]:
        """Return the metrics of a data set that has answers, from the logits (C,) of each of its texts."""
        outputs, labels = np.stack(logits), _labels(encoded)
        match self.problem:
            case Problem.single_label:
                return classification_metrics(outputs.argmax(1), labels, len(names))
            case Problem.multi_label:
                return multi_label_metrics(outputs > 0, labels)  # more likely than not, each
            case Problem.regression:
                return regression_metrics(outputs[:, 0], labels)

    def predict(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield for each text its `place`, the `label`, its probability `score`, and all `probabilities`.

        For multi_label there are `labels`, all that are more likely than not, and their `scores`; for regression
        `score` is the number itself.
        """
        for record, row in zip(encoded.records, logits, strict=True):
            yield {"place": record.place, **self._prediction(row, names)}

    def sections(
        self, encoded: Encoded, logits: list[np.ndarray], names: list[str], measured: Mapping[str, float]
    ) -> list[Section]:
        """Return the numbers of each label, confusions and the worst errors; of regression the last alone."""
        predictions = self.predict(encoded, logits, names)
        match self.problem:
            case Problem.single_label:
                return page.single_label(encoded.records, predictions, names)
            case Problem.multi_label:
                return page.label_sets(encoded.records, predictions)
            case Problem.regression:
                return page.regression(encoded.records, predictions)

    def _prediction(self, row: np.ndarray, names: list[str]) -> dict[str, Any]:
        """Return what logits (C,) predict."""
        from scipy.special import expit, softmax

        if self.problem is Problem.regression:
            return {"score": float(row[0])}
        logits = row.astype(np.float64)
        shares = softmax(logits) if self.problem is Problem.single_label else expit(logits)
        probabilities = dict(zip(names, shares.tolist(), strict=True))
        if self.problem is Problem.single_label:
            best = names[int(row.argmax())]
            return {"label": best, "score": probabilities[best], "probabilities": probabilities}
        chosen = [name for name, output in zip(names, row, strict=True) if output > 0]
        scores = [probabilities[name] for name in chosen]
        return {"labels": chosen, "scores": scores, "probabilities": probabilities}

    def _text(self, record: Record) -> LabelledText:
        """Return the text, or pair, and the label of a record. Raises `BadRecordError` for one that cannot be used."""
        texts = [record.values[role] for role in ("text", "text_pair") if role in record.values]
        for text in texts:
            if text is None or text == "" or (isinstance(text, str) and text.isspace()):
                raise BadRecordError("no text", f"{text!r:.80}")
            if not isinstance(text, str):
                raise BadRecordError("text is no string", f"{text!r:.80}")
        classes = record.classes.get("label", ())
        label = self._label(record.values["label"], classes) if "label" in record.values else None
        pair = texts[1] if len(texts) == 2 else None
        return LabelledText(texts[0], pair, label, record.place, classes)

    def _label(self, value: Any, classes: Sequence[str]) -> Label:
        match self.problem:
            case Problem.single_label:
                return label_name(value, self.labels)
            case Problem.multi_label:
                return label_set(value, self.label_separator, self.labels)
            case Problem.regression if value in classes and not _are_numbers(classes):  # a scale with words
                return float(classes.index(value))
            case Problem.regression:
                return regression_target(value)

    def _check_room(self, tokenizer: Tokenizer) -> None:
        """Raise `ConfigError` if a sequence is full before it has a token of each text: nothing would be cut then."""
        pair = self.columns.text_pair is not None
        least = tokenizer.num_special_tokens_to_add(pair) + 1 + pair
        rule = f"must be at least {least}: the special tokens and one token of each text"
        check(self.max_tokens >= least, "task.max_tokens", self.max_tokens, rule)

    def _encodings(
        self, records: Sequence[LabelledText], tokenizer: Tokenizer
    ) -> Iterator[tuple[LabelledText, Encoding]]:
        texts = [record.text if record.pair is None else (record.text, record.pair) for record in records]
        tokenizer.enable_truncation(self.max_tokens, strategy="longest_first")
        try:
            yield from zip(records, encodings(tokenizer, texts), strict=True)
        finally:
            tokenizer.no_truncation()


def _labels(encoded: Encoded) -> np.ndarray:
    labels = encoded.examples.labels
    assert labels is not None, "this data set has answers"
    return labels


def _are_numbers(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[+-]?[0-9.]+", name) for name in names)


def _warn_of_contradictions(source: str, texts: Iterable[LabelledText]) -> None:
    """Log how many records have a text that another record labels in another way."""
    same = defaultdict(list)
    for text in texts:
        same[text.text, text.pair].append(text)
    contradictory = [group for group in same.values() if len({text.label for text in group}) > 1]
    if contradictory:
        first, *others = contradictory[0]
        second = next(text for text in others if text.label != first.label)
        log.warning(
            "%s: %d records have the same text as one with another label, as %s (%r) and %s (%r)",
            *(source, sum(map(len, contradictory)), first.place, first.label, second.place, second.label),
        )
