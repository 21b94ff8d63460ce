"""Sequence to sequence: translation, summaries, answers to instructions; the model writes its answer.

Pairs are read in `pairs` and `conversations`, encoded in `encoding`, measured in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from finetune.answering.base import Codec, Encoded
from finetune.answering.by_writing import ByWriting
from finetune.answering.frame import Frame, frame_of
from finetune.answering.languages import with_languages
from finetune.answering.written import GenerationConfig
from finetune.data.records import DataSet
from finetune.data.tables import Delimiter
from finetune.tasks.seq2seq.conversations import (
    ChatTemplate,
    Conversation,
    chat_frame,
    chat_pairs,
    find_chat_template,
    read_conversations,
)
from finetune.tasks.seq2seq.encoding import encode_pairs
from finetune.tasks.seq2seq.metrics import TEXT_METRICS, text_metrics
from finetune.tasks.seq2seq.page import text_sections
from finetune.tasks.seq2seq.pairs import SOURCE, TARGET, Pair, PromptTemplate, read_pairs
from pretrain.errors import DataError, check
from pretrain.registry import register
from pretrain.report.page import Section

USUAL_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match", "f1")


class Seq2SeqMetric(StrEnum):
    """What chooses the best step."""

    loss = "loss"  # mean negative log-likelihood of a target's token; less is better
    accuracy = "accuracy"  # share of target tokens that the model holds likeliest
    bleu = "bleu"
    chrf = "chrf"
    rouge1 = "rouge1"
    rouge2 = "rouge2"
    rougeL = "rougeL"
    rougeLsum = "rougeLsum"
    exact_match = "exact_match"
    f1 = "f1"


@dataclass(kw_only=True)
class PairColumns:
    """The columns of a data set of pairs; not of two text files whose lines pair."""

    source: str = "source"  # column of what the model reads
    target: str = "target"  # column of what it writes
    messages: str | None = None  # column of a conversation, whose answers are the targets, in place of both


@register("task", "seq2seq")
@dataclass(kw_only=True)
class Seq2SeqConfig:
    """A text that the model writes for each text: a translation, a summary, an answer."""

    fixed: ClassVar[tuple[str, ...]] = (
        *("train", "validation", "metric", "label_smoothing", "source_language", "target_language"),
    )
    tuned_settings: ClassVar[tuple[str, ...]] = ()

    train: str = MISSING  # file (CSV, TSV, JSON lines, Parquet), SOURCES+TARGETS (text files), or org/name:split
    validation: str = MISSING  # the same of the validation set
    columns: PairColumns = field(default_factory=PairColumns)
    header: list[str] = field(default_factory=list)  # columns of CSV and TSV files whose first line does not name them
    delimiter: Delimiter = Delimiter.auto  # between cells of CSV and TSV: auto, comma, semicolon, tab or pipe
    template: str = "{source}"  # what the model reads: the source, or columns in braces, with an instruction around it
    source_language: str | None = None  # of mBART: en_XX and so on; null: that of the checkpoint's tokenizer
    target_language: str | None = None  # of mBART; null: the one that the checkpoint writes, if it writes one alone
    chat_template: str | None = None  # file of the Jinja template of messages; null: the one of the model's tokenizer
    every_answer: bool = False  # whether each answer of a conversation is a target, not just the last
    max_source_tokens: int = 512  # of what the model reads; what is longer is cut
    max_target_tokens: int = 128  # of what it writes; a longer target is cut
    max_faults: float = 0.0  # share of a data set's records that may be bad and left out
    label_smoothing: float = 0.0  # share of a target's probability that is spread over the vocabulary; 0.1 is usual
    generate_examples: int = 200  # records of the validation set that each evaluation answers; 0: none
    generate: GenerationConfig = field(default_factory=GenerationConfig)
    metrics: list[str] = field(default_factory=lambda: list(USUAL_METRICS))  # of the answers that were written
    metric: Seq2SeqMetric = Seq2SeqMetric.loss  # chooses the best step: loss, accuracy, or one of the metrics

    def __post_init__(self) -> None:
        for key in ("max_source_tokens", "max_target_tokens"):
            check(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1")
        check(0 <= self.max_faults < 1, "task.max_faults", self.max_faults, "must be at least 0 and below 1")
        check(0 <= self.label_smoothing < 1, "task.label_smoothing", self.label_smoothing, "must be in [0, 1)")
        check(self.generate_examples >= 0, "task.generate_examples", self.generate_examples, "0 (none) or more")
        PromptTemplate(self.template)
        self._check_form()
        for name in self.metrics:
            check(name in TEXT_METRICS, "task.metrics", name, f"must be one of {', '.join(TEXT_METRICS)}")
        of_texts = self.metric in TEXT_METRICS
        rule = (
            "is measured on answers that are written; set task.generate_examples above 0, and name it in task.metrics"
        )
        written = self.generate_examples > 0 and self.metric in self.metrics
        check(written or not of_texts, "task.metric", self.metric.value, rule)

    def _check_form(self) -> None:
        """Refuse settings of columns beside messages, and those of messages beside columns: nothing would read them."""
        if self.columns.messages is None:
            rule = "is for conversations; name their column in task.columns.messages, or leave it out"
            check(self.chat_template is None, "task.chat_template", self.chat_template, rule)
            check(not self.every_answer, "task.every_answer", self.every_answer, rule)
            return
        rule = f"task.columns.messages={self.columns.messages} is read by a chat template; leave one of them out"
        check(self.template == "{source}", "task.template", repr(self.template), rule)
        check(self.columns.source == SOURCE, "task.columns.source", self.columns.source, rule)
        check(self.columns.target == TARGET, "task.columns.target", self.columns.target, rule)

    @property
    def answering(self) -> ByWriting:
        """By writing."""
        return ByWriting(self)

    @property
    def variety(self) -> str:
        """It has one problem alone."""
        return ""

    def records(self, source: DataSet, *, labelled: bool = True) -> list[Pair] | list[Conversation]:
        """Read pairs, or conversations, whose targets may be missing unless they are `labelled`.

        In memory they are dictionaries by column, or texts and, with targets, tuples of both. Raises `ConfigError` for
        a file or column that is not there, `DataError` for more bad records than are allowed.
        """
        if self.columns.messages is not None:
            return read_conversations(source, self.columns.messages, max_faults=self.max_faults)
        return read_pairs(
            source,
            self.template,
            source_column=self.columns.source,
            target_column=self.columns.target,
            labelled=labelled,
            max_faults=self.max_faults,
            header=self.header,
            delimiter=self.delimiter,
        )

    def texts(self, source: DataSet) -> Iterator[str]:
        """Yield the texts of a data set, those that are read and those that are written."""
        for record in self.records(source):
            if isinstance(record, Pair):
                yield from (record.source, record.target or "")
            else:
                yield from (message["content"] for message in record.messages)

    def names(self, records: Sequence[Any]) -> list[str]:
        """Return none: there is no head."""
        return []

    def frame(self, codec: Codec) -> Frame:
        """Return the ids that stand around texts. Raises `ConfigError` for a model without an end or a start token."""
        frame, template = frame_of(codec), self._template(codec)
        return frame if template is None else chat_frame(template, codec.tokenizer, frame)

    def in_languages(self, codec: Codec) -> Codec:
        """Return the codec of texts in the task's languages, if the model marks texts by theirs.

        Raises `ConfigError` for languages that it does not have, or has no marks for.
        """
        return with_languages(codec, self.source_language, self.target_language)

    def with_chat_template(self, codec: Codec, folder: Path) -> Codec:
        """Return the codec with the template that messages are read by, if there are any.

        It is that of task.chat_template, the codec's own or, without one, that of the checkpoint in `folder`. Raises
        `ConfigError` if there is none.
        """
        if self.columns.messages is None:
            return replace(codec, chat_template=None)
        if codec.chat_template is not None and self.chat_template is None:
            return codec
        found = find_chat_template(folder, self.chat_template, codec.tokenizer, frame_of(codec))
        return replace(codec, chat_template=found._asdict())

    def encode(self, records: Sequence[Any], codec: Codec, *, labelled: bool) -> Encoded:
        """Encode pairs, or the answers of conversations, an example each, as `Pair` records.

        Raises `DataError` for more records than allowed that cannot be, `ConfigError` for limits without room for text.
        """
        pairs, template = records, self._template(codec)
        if template is not None:
            pairs = chat_pairs(
                records,
                template,
                codec.tokenizer,
                labelled=labelled,
                every_answer=self.every_answer,
                max_faults=self.max_faults,
            )
        examples, kept, _ = encode_pairs(
            pairs,
            codec.tokenizer,
            self.frame(codec),
            max_source_tokens=self.max_source_tokens,
            max_target_tokens=self.max_target_tokens,
            labelled=labelled,
            max_faults=self.max_faults,
            target_tokenizer=codec.target_tokenizer,
        )
        return Encoded(examples, kept)

    def measure(self, encoded: Encoded, answers: list[str], names: list[str]) -> dict[str, float]:
        """Return the metrics of the texts that were written; none of none."""
        return text_metrics(answers, _targets(encoded), self.metrics) if answers else {}

    def predict(self, encoded: Encoded, answers: list[str], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield the `place`, the `source` as the model read it, the `target` if there is one, and the `prediction`."""
        for pair, text in zip(encoded.records, answers, strict=True):
            target = {} if pair.target is None else {"target": pair.target}
            yield {"place": pair.place, "source": pair.source, **target, "prediction": text}

    def sections(
        self, encoded: Encoded, answers: list[str], names: list[str], measured: Mapping[str, float]
    ) -> list[Section]:
        """Return lengths, examples side by side, and the worst ones."""
        return text_sections(encoded.records, answers, self.metrics)

    def _template(self, codec: Codec) -> ChatTemplate | None:
        return None if codec.chat_template is None else ChatTemplate(**codec.chat_template)


def _targets(encoded: Encoded) -> list[str]:
    targets = [pair.target for pair in encoded.records]
    if None in targets:
        raise DataError("pairs were read without targets, so predictions cannot be measured")
    return targets
