"""Tags of words: named entities, parts of speech and anything else that has one label a word.

Sentences are read in `conll` and `sentences`, words become tokens in `alignment`, entities are measured in `metrics`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from omegaconf import MISSING
from tokenizers import Tokenizer

from finetune.answering.base import Encoded
from finetune.answering.by_head import ByHead
from finetune.data.examples import Example, Examples
from finetune.data.records import DataSet, Record, name_of, read_records
from finetune.model.losses import ClassWeights, CrossEntropy, TaskLoss, balanced_weights
from finetune.tasks.base import check_classes, in_order, shortlist
from finetune.tasks.tokens.alignment import NO_WORD, encode_words, first_tokens, word_spans
from finetune.tasks.tokens.conll import read_columns
from finetune.tasks.tokens.metrics import entity_metrics, entity_spans
from finetune.tasks.tokens.page import tag_sections
from finetune.tasks.tokens.sentences import OUTSIDE, Sentence, TagScheme, is_tag, misspelled, scheme_of, to_sentence
from pretrain.data.batch import IGNORED
from pretrain.data.sources.bad_records import SHOWN, BadRecordError, BadRecords
from pretrain.data.sources.locations import is_file, other_spelling
from pretrain.data.sources.readers import JSON_LINES, file_format
from pretrain.errors import ConfigError, DataError, check
from pretrain.hub.task_heads import HeadKind
from pretrain.registry import register
from pretrain.report.page import Section

COLUMN_FILES = (".conll", ".conllu", ".conllup", ".iob", ".iob2", ".bio", ".txt", ".tsv")  # no names on the hub

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TagColumns:
    """The columns of JSON lines, Parquet and data sets on the hub."""

    words: str = "words"  # column of the list of words
    tags: str = "tags"  # column of the list of their tags, or of the indices of these in task.labels


class Aligned(NamedTuple):
    """A sentence, and where its words are among the tokens of the data set."""

    sentence: Sentence
    first: np.ndarray  # (words,) int64, the place of each word's first token, or NO_WORD


@register("task", "tokens")
@dataclass(kw_only=True)
class TokensConfig:
    """A tag for every word of a sentence."""

    kind: ClassVar[HeadKind] = HeadKind.token
    fixed: ClassVar[tuple[str, ...]] = (
        *("train", "validation", "metric", "scheme", "labels"),
        *("label_all_pieces", "label_smoothing", "class_weights"),
    )
    tuned_settings: ClassVar[tuple[str, ...]] = ()

    train: str = MISSING  # file (CoNLL columns, JSON lines, Parquet), or org/name:split, of the training set
    validation: str = MISSING  # the same of the validation set
    columns: TagColumns = field(default_factory=TagColumns)
    word_column: int | None = None  # of CoNLL columns, from 0, or from -1 backwards; null: the first, CoNLL-U's FORM
    tag_column: int | None = None  # of CoNLL columns; null: the last, CoNLL-U's UPOS
    scheme: TagScheme = TagScheme.auto  # how tags mark entities: auto, bio, iob1, bioes, bilou; none: parts of speech
    labels: list[str] = field(default_factory=list)  # tags in their order; empty: as the training set has them, O first
    label_all_pieces: bool = False  # whether all tokens of a word have its tag as target, not just the first
    max_tokens: int = 512  # of a sequence; a longer sentence becomes several, cut between words
    max_faults: float = 0.0  # share of a data set's sentences that may be bad and left out
    label_smoothing: float = 0.0  # share of a target's probability that is spread over all tags
    class_weights: ClassWeights = ClassWeights.none  # how words count: none (alike), or balanced over tags
    metric: str = ""  # chooses the best step; empty: f1, or accuracy where tags mark no entities

    def __post_init__(self) -> None:
        known = ["accuracy"] if self.scheme is TagScheme.none else ["f1", "precision", "recall", "accuracy"]
        self.metric = self.metric or known[0]
        rule = f"must be one of {', '.join(known)} for task.scheme={self.scheme}"
        check(self.metric in known, "task.metric", self.metric, rule)
        check(self.max_tokens > 0, "task.max_tokens", self.max_tokens, "must be above 0")
        check(0 <= self.max_faults < 1, "task.max_faults", self.max_faults, "must be at least 0 and below 1")
        check(0 <= self.label_smoothing < 1, "task.label_smoothing", self.label_smoothing, "must be in [0, 1)")
        if self.labels:
            self._check_labels()

    @property
    def answering(self) -> ByHead:
        """By a head."""
        return ByHead(self)

    @property
    def variety(self) -> str:
        """How tags mark entities."""
        return self.scheme.value

    @property
    def problem_type(self) -> None:
        """None: each word has one tag."""
        return None

    def records(self, source: DataSet, *, labelled: bool = True) -> list[Sentence]:
        """Read sentences, with their tags if they are `labelled`, else with words alone.

        In memory a sentence is a list of words, or a text, whose words are what white space separates.
        Which scheme the tags are spelled in is logged if it is not set, and entities that the scheme spells otherwise
        (an I- after O, say) are logged and kept: they are read as by `conlleval`. Raises `ConfigError` for a file or
        column that is not there, `DataError` for more bad sentences than are allowed.
        """
        name = name_of(source)
        bad_records = BadRecords(name, allowed=self.max_faults)
        sentences: list[Sentence] = []
        for record in self._read(source, labelled, bad_records):
            with bad_records.counted(record.place):
                sentences.append(to_sentence(record, self.scheme, self.labels))
        bad_records.settle(len(sentences))
        if labelled:
            self._log_spelling(name, sentences)
        return sentences

    def names(self, records: Sequence[Sentence]) -> list[str]:
        """Return `labels`, or the tags in the order that the training set has itself, or O first and the others sorted.

        Raises `DataError` for sentences without tags, for words that all have one tag, and for a name that the data set
        has for a tag but that is none of the scheme.
        """
        if self.labels:
            return list(self.labels)
        tags = {tag for sentence in records for tag in _tags(sentence)}
        if self.scheme is not TagScheme.none:
            tags.add(OUTSIDE)
        if len(tags) == 1:
            raise DataError(f"task.train: all words have the tag {tags.pop()!r}: there is nothing to learn; add others")
        named = records[0].classes
        if wrong := [name for name in named if not is_tag(name, self.scheme)]:
            rule = f"{wrong[0]!r}, one of the names of its tags, is none of task.scheme={self.scheme}; set another"
            raise DataError(f"task.train={self.train}: {rule}")
        outside = [OUTSIDE] if OUTSIDE in tags.difference(named) else []
        return outside + (list(named) or in_order(tags.difference(outside)))

    def encode(self, records: Sequence[Sentence], tokenizer: Tokenizer, names: list[str]) -> Encoded:
        """Encode sentences: the target of each word's first token is its tag, or that of all its tokens.

        The tokenizer must neither truncate nor pad. Words without a token are logged, and sentences of nothing else
        have no sequence. Raises `DataError` if more sentences than are allowed have tags that are not in `names`,
        `ConfigError` for a `max_tokens` that leaves no room for text.
        """
        if records and not self.labels:
            check_classes(records[0].place, records[0].classes, names, self.train)
        known = self._with_known_tags(records, names)
        indices = {name: index for index, name in enumerate(names)}
        examples: list[Example] = []
        aligned: list[Aligned] = []
        total = cut = 0
        encodings = encode_words(tokenizer, [sentence.words for sentence in known], self.max_tokens)
        for sentence, encoding in zip(known, encodings, strict=True):
            tags = None if sentence.tags is None else np.array([indices[tag] for tag in sentence.tags])
            first = np.full(len(sentence.words), NO_WORD)
            for sequence in encoding.sequences:
                words, places = first_tokens(sequence.words)
                first[words] = total + places
                targets = None if tags is None else self._targets(sequence.words, tags)
                examples.append(Example(sequence.tokens, sequence.segments, targets=targets))
                total += len(sequence.tokens)
            aligned.append(Aligned(sentence, first))
            cut += encoding.left_out > 0
        _log_lost(aligned, cut)
        return Encoded(Examples.of(examples), aligned)

    def loss(self, encoded: Encoded, names: list[str]) -> TaskLoss:
        """Return the cross-entropy of tags, with balanced weights if these are set."""
        if self.class_weights is ClassWeights.none:
            return CrossEntropy(smoothing=self.label_smoothing)
        targets = encoded.examples.targets
        assert targets is not None, "a training set has tags"
        weights = balanced_weights(targets[targets != IGNORED], names, of="word")
        return CrossEntropy(smoothing=self.label_smoothing, weights=weights)

    def measure(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> dict[str, float]:
        """Return `f1`, `precision` and `recall` of entities, over all and of each type, and the `accuracy` of words.

        Where tags mark no entities there is only the accuracy. Words without a token count, too.
        """
        predicted = [tags for tags, _ in _decoded(encoded, logits, names)]
        references = [_tags(record.sentence) for record in encoded.records]
        if self.scheme is not TagScheme.none:
            return entity_metrics(predicted, references)
        pairs = zip(itertools.chain(*predicted), itertools.chain(*references), strict=True)
        return {"accuracy": float(np.mean([tag == reference for tag, reference in pairs]))}

    def predict(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield for each sentence its `place`, `text`, `words`, `tags`, and the probabilities of these as `scores`.

        The score of a word without a token is None. Where tags mark `entities`, each has its type and words, its start
        and end in characters of the text, and the mean probability of its tags.
        """
        for record, (tags, scores) in zip(encoded.records, _decoded(encoded, logits, names), strict=True):
            words = record.sentence.words
            place = record.sentence.place
            found = {"place": place, "text": " ".join(words), "words": words, "tags": tags, "scores": scores}
            if self.scheme is not TagScheme.none:
                found["entities"] = _entities(words, tags, scores)
            yield found

    def sections(
        self, encoded: Encoded, logits: list[np.ndarray], names: list[str], measured: Mapping[str, float]
    ) -> list[Section]:
        """Return the numbers of each type of entity, or of each tag, their confusions and the worst sentences."""
        sentences = [record.sentence for record in encoded.records]
        predicted = [tags for tags, _ in _decoded(encoded, logits, names)]
        return tag_sections(sentences, predicted, names, entities=self.scheme is not TagScheme.none)

    def _check_labels(self) -> None:
        distinct = 1 < len(set(self.labels)) == len(self.labels)
        check(distinct, "task.labels", self.labels, "name each tag once, and at least two")
        for label in self.labels:
            rule = f"{label!r} is no tag of task.scheme={self.scheme}; rename it, or choose another scheme"
            check(is_tag(label, self.scheme), "task.labels", self.labels, rule)
        if self.scheme is not TagScheme.none:
            rule = f"must have {OUTSIDE}, the tag of words outside entities; add it"
            check(OUTSIDE in self.labels, "task.labels", self.labels, rule)

    def _log_spelling(self, source: str, sentences: Sequence[Sentence]) -> None:
        """Log in which scheme tags are spelled, unless it is set, and how many entities it spells otherwise."""
        scheme = self.scheme
        if scheme is TagScheme.auto:
            scheme = scheme_of([_tags(sentence) for sentence in sentences])
            log.info("%s: tags are spelled as in task.scheme=%s", source, scheme)
        found = [
            f"{sentence.place_of(word)}: {' '.join(tags)}"
            for sentence in sentences
            for word, tags in misspelled(_tags(sentence), scheme)
        ]
        if found:
            some = ", ".join(found[:SHOWN])
            log.warning("%s: %d entities are not spelled as in %s (%s)", source, len(found), scheme, some)

    def _read(self, source: DataSet, labelled: bool, bad_records: BadRecords) -> Iterator[Record]:
        columns = {"words": self.columns.words} | ({"tags": self.columns.tags} if labelled else {})
        if not isinstance(source, str):
            sentences = [one.split() if isinstance(one, str) else one for one in source]
            return read_records(sentences, columns, bad_records)
        form = file_format(source)
        if is_file(source) and form not in (*JSON_LINES, ".parquet"):
            numbers = {"word_column": self.word_column, "tag_column": self.tag_column}
            return read_columns(source, bad_records, **numbers, labelled=labelled)
        if not Path(source).exists() and form in COLUMN_FILES:
            raise ConfigError(
                f"{source}: no such file{other_spelling(source)}; name one of CoNLL columns, JSON lines or Parquet"
            )
        return read_records(source, columns, bad_records)

    def _with_known_tags(self, records: Sequence[Sentence], names: list[str]) -> list[Sentence]:
        """Return the sentences whose tags are all in `names`. Raises `DataError` for too many of the others."""
        bad_records = BadRecords(f"tags other than {shortlist(names)}", allowed=self.max_faults)
        known, kept = set(names), []
        for sentence in records:
            with bad_records.counted(sentence.place):
                for number, (word, tag) in enumerate(zip(sentence.words, sentence.tags or [], strict=False)):
                    if tag not in known:
                        raise BadRecordError(f"unknown tag {tag!r}", f"{word!a:.40}", sentence.place_of(number))
                kept.append(sentence)
        bad_records.settle(len(kept))
        return kept

    def _targets(self, words: np.ndarray, tags: np.ndarray) -> list[int]:
        """Return the targets of tokens (N,), from the word of each and the tag numbers of the sentence's words."""
        places = np.flatnonzero(words != NO_WORD) if self.label_all_pieces else first_tokens(words)[1]
        targets = np.full(len(words), IGNORED)
        targets[places] = tags[words[places]]
        return targets.tolist()


def _tags(sentence: Sentence) -> list[str]:
    if sentence.tags is None:
        raise DataError(f"{sentence.place}: no tags; training and evaluation need them")
    return sentence.tags


def _log_lost(records: Sequence[Aligned], cut: int) -> None:
    """Log which words are encoded in part, or not at all."""
    lost = [
        f"{record.sentence.place_of(word)}: {record.sentence.words[word]!a:.20}"
        for record in records
        for word in np.flatnonzero(record.first == NO_WORD).tolist()
    ]
    if lost:
        some = ", ".join(lost[:SHOWN])
        log.warning("%d words have no token (%s): each is taken to be %s", len(lost), some, OUTSIDE)
    if cut:
        log.warning("%d sentences have words longer than task.max_tokens: only the start of these is encoded", cut)


def _decoded(
    encoded: Encoded, logits: list[np.ndarray], names: list[str]
) -> Iterator[tuple[list[str], list[float | None]]]:
    """Yield for each sentence the likeliest tag of each word, and its probability."""
    rows = np.concatenate([np.zeros((0, len(names))), *logits])  # of all tokens, float64
    best = rows.argmax(1)
    scores = 1 / np.exp(rows - rows.max(1, keepdims=True)).sum(1)  # softmax at its largest
    for record in encoded.records:
        yield (
            [OUTSIDE if place == NO_WORD else names[best[place]] for place in record.first],
            [None if place == NO_WORD else float(scores[place]) for place in record.first],
        )


def _entities(words: list[str], tags: list[str], scores: list[float | None]) -> list[dict[str, Any]]:
    places = word_spans(words)
    return [
        {
            "type": kind,
            "words": words[first : last + 1],
            "start": places[first][0],
            "end": places[last][1],
            "score": float(np.mean([score for score in scores[first : last + 1] if score is not None])),
        }
        for kind, first, last in entity_spans(tags)
    ]
