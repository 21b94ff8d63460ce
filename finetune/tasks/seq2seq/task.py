"""Sequence to sequence: translation, summaries, answers to instructions; the model writes its answer.

Pairs are read in `pairs` and `messages`, encoded in `encoding`, measured in `metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from omegaconf import MISSING

from pretrain.errors import check
from pretrain.registry import register

TEXT_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match", "f1")  # of texts that were written


class Seq2SeqMetric(StrEnum):
    """What chooses the best step."""

    loss = "loss"  # mean negative log-likelihood of a target's token; less is better
    accuracy = "accuracy"  # share of target tokens that the model holds likeliest
    bleu = "bleu"
    chrf = "chrf"
    rougeL = "rougeL"  # noqa: N815 (its name)
    exact_match = "exact_match"
    f1 = "f1"


@dataclass(kw_only=True)
class PairColumns:
    """The columns of a data set of pairs; not of two text files whose lines pair."""

    source: str = "source"  # column of what the model reads
    target: str = "target"  # column of what it writes
    messages: str | None = None  # column of a conversation, whose last message is the target, in place of both


@dataclass(kw_only=True)
class GenerationConfig:
    """How an answer is written when the model is measured and when it predicts."""

    beams: int = 1  # hypotheses that are kept at once; 1: always the likeliest token
    length_penalty: float = 1.0  # exponent of the length that divides a hypothesis's log-likelihood; beams above 1
    no_repeat_ngram: int = 0  # tokens; no run of so many may be written twice; beams above 1; 0: any may

    def __post_init__(self) -> None:
        check(self.beams >= 1, "task.generate.beams", self.beams, "at least 1 hypothesis")
        check(self.no_repeat_ngram >= 0, "task.generate.no_repeat_ngram", self.no_repeat_ngram, "0 (off) or more")


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
        check("{source}" in self.template, "task.template", repr(self.template), "must contain {source}")
        for name in self.metrics:
            check(name in TEXT_METRICS, "task.metrics", name, f"must be one of {', '.join(TEXT_METRICS)}")
        of_texts = self.metric in TEXT_METRICS
        rule = "is measured on answers that are written; set task.generate_examples above 0, and name it in task.metrics"
        written = self.generate_examples > 0 and self.metric in self.metrics
        check(written or not of_texts, "task.metric", self.metric.value, rule)
