"""Sequence to sequence: translation, summaries, answers to instructions; the model writes its answer.

Pairs are read in `pairs` and `messages`, encoded in `encoding`, measured in `metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from omegaconf import MISSING

from finetune.answering.base import Codec
from finetune.answering.writing import ByWriting, frame_of
from finetune.answering.written import GenerationConfig
from finetune.data.records import DataSet
from finetune.tasks.seq2seq.conversations import (
    ChatTemplate,
    Conversation,
    chat_frame,
    read_conversations,
)
from finetune.tasks.seq2seq.encoding import Frame
from finetune.tasks.seq2seq.metrics import TEXT_METRICS
from finetune.tasks.seq2seq.pairs import Pair, PromptTemplate, read_pairs
from pretrain.errors import check
from pretrain.registry import register


class Seq2SeqMetric(StrEnum):
    """What chooses the best step."""

    loss = "loss"  # mean negative log-likelihood of a target's token; less is better
    accuracy = "accuracy"  # share of target tokens that the model holds likeliest
    bleu = "bleu"
    chrf = "chrf"
    rougeL = "rougeL"
    exact_match = "exact_match"
    f1 = "f1"


@dataclass(kw_only=True)
class PairColumns:
    """The columns of a data set of pairs; not of two text files whose lines pair."""

    source: str = "source"  # column of what the model reads
    target: str = "target"  # column of what it writes
    messages: str | None = None  # column of a conversation, whose last message is the target, in place of both


@register("task", "seq2seq")
@dataclass(kw_only=True)
class Seq2SeqConfig:
    """A text that the model writes for each text: a translation, a summary, an answer."""

    fixed: ClassVar[tuple[str, ...]] = ("train", "validation", "metric", "label_smoothing")
    tuned_settings: ClassVar[tuple[str, ...]] = ()

    train: str = MISSING  # file (CSV, TSV, JSON lines, Parquet), SOURCES+TARGETS (text files), or org/name:split
    validation: str = MISSING  # the same of the validation set
    columns: PairColumns = field(default_factory=PairColumns)
    template: str = "{source}"  # what the model reads: the source with an instruction around it
    chat_template: str | None = None  # file of the Jinja template of messages; null: the one of the model's tokenizer
    max_source_tokens: int = 512  # of what the model reads; what is longer is cut
    max_target_tokens: int = 128  # of what it writes; a longer target is cut
    max_faults: float = 0.0  # share of a data set's records that may be bad and left out
    label_smoothing: float = 0.0  # share of a target's probability that is spread over the vocabulary; 0.1 is usual
    generate_examples: int = 200  # records of the validation set that each evaluation answers; 0: none
    generate: GenerationConfig = field(default_factory=GenerationConfig)
    metrics: list[str] = field(default_factory=lambda: list(TEXT_METRICS))  # of the answers that were written
    metric: Seq2SeqMetric = Seq2SeqMetric.loss  # chooses the best step: loss, accuracy, or one of the metrics

    def __post_init__(self) -> None:
        for key in ("max_source_tokens", "max_target_tokens"):
            check(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1")
        check(0 <= self.max_faults < 1, "task.max_faults", self.max_faults, "must be at least 0 and below 1")
        check(0 <= self.label_smoothing < 1, "task.label_smoothing", self.label_smoothing, "must be in [0, 1)")
        check(self.generate_examples >= 0, "task.generate_examples", self.generate_examples, "0 (none) or more")
        PromptTemplate(self.template)
        for name in self.metrics:
            check(name in TEXT_METRICS, "task.metrics", name, f"must be one of {', '.join(TEXT_METRICS)}")
        of_texts = self.metric in TEXT_METRICS
        rule = (
            "is measured on answers that are written; set task.generate_examples above 0, and name it in task.metrics"
        )
        written = self.generate_examples > 0 and self.metric in self.metrics
        check(written or not of_texts, "task.metric", self.metric.value, rule)

    @property
    def answering(self) -> ByWriting:
        """By writing."""
        return ByWriting(self)

    def records(self, source: DataSet, *, labelled: bool = True) -> list[Pair] | list[Conversation]:
        """Read pairs, or conversations, with their targets if they are `labelled`.

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

    def names(self, records: Sequence[Any]) -> list[str]:
        """Return none: there is no head."""
        return []

    def frame(self, codec: Codec) -> Frame:
        """Return the ids that stand around texts. Raises `ConfigError` for a model without an end or a start token."""
        frame = frame_of(codec)
        if codec.chat_template is not None:
            frame = chat_frame(ChatTemplate(**codec.chat_template), codec.tokenizer, frame)
        return frame
