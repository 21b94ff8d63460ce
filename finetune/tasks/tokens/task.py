"""Tags of words: named entities, parts of speech and whatever else is asked of every word of a sentence.

Holds the task; sentences are read in `conll`, `records` and `sentences`, words become tokens in `alignment`, entities
are measured in `entities`.
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

from finetune.data.examples import Example, Examples
from finetune.data.records import JSON_LINES, Record, read_records
from finetune.model.heads import Kind
from finetune.model.losses import ClassWeights, TaskLoss, TokenLabels, balanced
from finetune.report.page import Section
from finetune.tasks.base import Encoded
from finetune.tasks.tokens.alignment import NO_WORD, encode_words, first_pieces, spans
from finetune.tasks.tokens.conll import read_columns
from finetune.tasks.tokens.metrics import entity_metrics
from finetune.tasks.tokens.page import Tagged, of_entities, of_labels
from finetune.tasks.tokens.sentences import Bad, Sentence, to_sentence
from finetune.tasks.tokens.tags import OUTSIDE, TagScheme, entity_spans, fits, misspelt
from pretrain.data.batch import IGNORED
from pretrain.data.sources.bad_records import SHOWN, BadRecords
from pretrain.data.sources.readers import COMPRESSED
from pretrain.errors import ConfigError, DataError, check
from pretrain.registry import register

COLUMN_FILES = (".conll", ".iob", ".iob2", ".bio", ".txt", ".tsv")  # names on the hub do not end so

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Columns:
    """The columns of JSON lines, Parquet and data sets on the hub."""

    words: str = "words"  # column of the list of words
    tags: str = "tags"  # column of the list of their tags, or of the places of these in task.labels


class Aligned(NamedTuple):
    """A sentence, and where its words are among the tokens of the data set."""

    sentence: Sentence
    first: np.ndarray  # (words,) int64, the place of each word's first token, or NO_WORD


@register("task", "tokens")
@dataclass(kw_only=True)
class TokensConfig:
    """A tag for every word of a sentence."""

    kind: ClassVar[Kind] = Kind.token
    fixed: ClassVar[tuple[str, ...]] = (
        *("train", "validation", "metric", "scheme", "labels"),
        *("label_all_pieces", "label_smoothing", "class_weights"),
    )
    found: ClassVar[tuple[str, ...]] = ()

    train: str = MISSING  # file (CoNLL columns, JSON lines, Parquet), or org/name:split, of what to learn from
    validation: str = MISSING  # of what measures it
    columns: Columns = field(default_factory=Columns)
    word_column: int = 0  # column of words in CoNLL columns, from 0, or from -1 backwards
    tag_column: int = -1  # column of tags in CoNLL columns, from 0, or from -1 backwards
    scheme: TagScheme = TagScheme.bio  # how tags mark entities: bio, bioes, or none (parts of speech)
    labels: list[str] = field(default_factory=list)  # tags in their order; empty: those of the training set, O first
    label_all_pieces: bool = False  # whether all tokens of a word learn its tag, not just the first
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

    def records(self, source: str, *, labelled: bool = True) -> list[Sentence]:
        """Read sentences, with their tags if they are `labelled`, else with words alone.

        Entities that are not spelt as the scheme has it (an I- that nothing begins, say) are told and kept: they are
        read as `conlleval` does. Raises `ConfigError` for a file or column that is not there, `DataError` for bad
        sentences beyond the share that is allowed.
        """
        faults = BadRecords(source, allowed=self.max_faults)
        sentences: list[Sentence] = []
        spellings: list[str] = []
        for record in self._read(source, labelled, faults):
            sentence = to_sentence(record, self.scheme, self.labels)
            if isinstance(sentence, Bad):
                faults.report(*sentence)
                continue
            sentences.append(sentence)
            for word, tags in misspelt(sentence.tags or [], self.scheme):
                spellings.append(f"{sentence.place_of(word)}: {' '.join(tags)}")
        faults.settle(len(sentences) + sum(faults.counts.values()))
        if spellings:
            told = ", ".join(spellings[:SHOWN])
            log.warning("%s: %d entities are not spelt as %s has it (%s)", source, len(spellings), self.scheme, told)
        return sentences

    def names(self, records: Sequence[Sentence]) -> list[str]:
        """Return `labels`, or the tags of the training set: O first, the others by name.

        Raises `DataError` for sentences without tags, and for words that all have one tag.
        """
        if self.labels:
            return list(self.labels)
        tags = {tag for sentence in records for tag in _tags(sentence)}
        if self.scheme is not TagScheme.none:
            tags.add(OUTSIDE)
        if len(tags) == 1:
            raise DataError(f"task.train: all words have the tag {tags.pop()!r}: nothing can be learnt; add others")
        return sorted(tags, key=lambda tag: (tag != OUTSIDE, tag))

    def encode(self, records: Sequence[Sentence], tokenizer: Tokenizer, names: list[str]) -> Encoded:
        """Encode sentences: the first token of each word has its tag as target, or all of its tokens have.

        The tokenizer must neither cut nor fill up. Words without a token are told, and sentences of nothing else have
        no sequence. Raises `DataError` for more sentences with tags that are not in `names` than are allowed,
        `ConfigError` for a `max_tokens` that holds no text.
        """
        known = self._named(records, names)
        numbers = {name: number for number, name in enumerate(names)}
        examples: list[Example] = []
        aligned: list[Aligned] = []
        owner: list[int] = []
        total = cut = 0
        fitted = encode_words(tokenizer, [sentence.words for sentence in known], self.max_tokens)
        for record, (sentence, fit) in enumerate(zip(known, fitted, strict=True)):
            tags = None if sentence.tags is None else np.array([numbers[tag] for tag in sentence.tags])
            first = np.full(len(sentence.words), NO_WORD)
            for sequence in fit.sequences:
                words, places = first_pieces(sequence.words)
                first[words] = total + places
                targets = None if tags is None else self._targets(sequence.words, tags)
                examples.append(Example(sequence.tokens, sequence.segments, targets=targets))
                owner.append(record)
                total += len(sequence.tokens)
            aligned.append(Aligned(sentence, first))
            cut += fit.left_out > 0
        _tell_lost(aligned, cut)
        return Encoded(Examples.of(examples), aligned, np.array(owner, dtype=np.int64))

    def loss(self, encoded: Encoded, names: list[str]) -> TaskLoss:
        """Return the cross-entropy of tags, which have `balanced` weights if that is set."""
        if self.class_weights is ClassWeights.none:
            return TokenLabels(smoothing=self.label_smoothing)
        targets = encoded.examples.targets
        assert targets is not None, "a training set has tags"
        weights = balanced(targets[targets != IGNORED], names, of="word")
        return TokenLabels(smoothing=self.label_smoothing, weights=weights)

    def measure(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> dict[str, float]:
        """Return `f1`, `precision` and `recall` of entities, of each type, too, and the `accuracy` of words.

        Where tags mark no entities there is the accuracy alone. Every word counts, those without a token, too.
        """
        predicted = [tags for tags, _ in _decoded(encoded, logits, names)]
        references = [_tags(record.sentence) for record in encoded.records]
        if self.scheme is not TagScheme.none:
            return entity_metrics(predicted, references)
        pairs = zip(itertools.chain(*predicted), itertools.chain(*references), strict=True)
        return {"accuracy": float(np.mean([tag == reference for tag, reference in pairs]))}

    def predict(self, encoded: Encoded, logits: list[np.ndarray], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield of each sentence its words, joined as `text` and one by one, with `tags` and their probabilities.

        `place` says where the sentence begins. The score of a word without a token is None. Where tags mark `entities`,
        each has its type and words, where it begins and ends in characters of the text, and the mean probability of its
        tags.
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
        """Return types of entities, or tags, what is taken for what, values by length and the worst sentences."""
        sentences = [
            Tagged(record.sentence.words, _tags(record.sentence), tags, record.sentence.place)
            for record, (tags, _) in zip(encoded.records, _decoded(encoded, logits, names), strict=True)
        ]
        return of_labels(sentences, names) if self.scheme is TagScheme.none else of_entities(sentences, measured)

    def _check_labels(self) -> None:
        distinct = 1 < len(set(self.labels)) == len(self.labels)
        check(distinct, "task.labels", self.labels, "name each tag once, and at least two")
        for label in self.labels:
            rule = f"{label!r} is no tag of task.scheme={self.scheme}; rename it, or choose another scheme"
            check(fits(label, self.scheme), "task.labels", self.labels, rule)
        if self.scheme is not TagScheme.none:
            rule = f"must have {OUTSIDE}, the tag of words in no entity; add it"
            check(OUTSIDE in self.labels, "task.labels", self.labels, rule)

    def _read(self, source: str, labelled: bool, faults: BadRecords) -> Iterator[Record]:
        path = Path(source)
        form = next((suffix for suffix in reversed(path.suffixes) if suffix not in COMPRESSED), "")
        if path.exists() and not path.is_dir() and form not in (*JSON_LINES, ".parquet"):
            return read_columns(
                source, faults, word_column=self.word_column, tag_column=self.tag_column if labelled else None
            )
        if not path.exists() and form in COLUMN_FILES:
            raise ConfigError(f"{source}: no such file; name one of CoNLL columns, JSON lines or Parquet")
        columns = {"words": self.columns.words} | ({"tags": self.columns.tags} if labelled else {})
        return read_records(source, columns, faults)

    def _named(self, records: Sequence[Sentence], names: list[str]) -> list[Sentence]:
        """Return the sentences all of whose tags have names. Raises `DataError` for too many of the others."""
        faults = BadRecords(f"tags that are to be {', '.join(names)}", allowed=self.max_faults)
        known, kept = set(names), []
        for sentence in records:
            strangers = [word for word, tag in enumerate(sentence.tags or []) if tag not in known]
            if sentence.tags and strangers:
                reason = f"unknown tag {sentence.tags[strangers[0]]!r}"
                faults.report(reason, sentence.place_of(strangers[0]), ascii(sentence.words[strangers[0]])[:40])
            else:
                kept.append(sentence)
        faults.settle(len(records))
        return kept

    def _targets(self, words: np.ndarray, tags: np.ndarray) -> list[int]:
        """Return the targets of tokens (N,), from the word of each and the tag numbers of the sentence's words."""
        places = np.flatnonzero(words != NO_WORD) if self.label_all_pieces else first_pieces(words)[1]
        targets = np.full(len(words), IGNORED)
        targets[places] = tags[words[places]]
        return targets.tolist()


def _tags(sentence: Sentence) -> list[str]:
    if sentence.tags is None:
        raise DataError(f"{sentence.place}: no tags; they are needed to learn and to measure")
    return sentence.tags


def _tell_lost(records: Sequence[Aligned], cut: int) -> None:
    """Log which words are read in part, or not at all."""
    lost = [
        f"{record.sentence.place_of(word)}: {record.sentence.words[word]!a:.20}"
        for record in records
        for word in np.flatnonzero(record.first == NO_WORD).tolist()
    ]
    if lost:
        told = ", ".join(lost[:SHOWN])
        log.warning("%d words have no token (%s): each is taken to be %s", len(lost), told, OUTSIDE)
    if cut:
        log.warning("%d sentences have words longer than task.max_tokens: only what fits is read of these", cut)


def _decoded(
    encoded: Encoded, logits: list[np.ndarray], names: list[str]
) -> Iterator[tuple[list[str], list[float | None]]]:
    """Yield the likeliest tag of each word of each sentence, and its probability."""
    rows = np.concatenate([np.zeros((0, len(names))), *logits])  # of all tokens, float64
    best = rows.argmax(1)
    scores = 1 / np.exp(rows - rows.max(1, keepdims=True)).sum(1)  # softmax at its largest
    for record in encoded.records:
        yield (
            [OUTSIDE if place == NO_WORD else names[best[place]] for place in record.first],
            [None if place == NO_WORD else float(scores[place]) for place in record.first],
        )


def _entities(words: list[str], tags: list[str], scores: list[float | None]) -> list[dict[str, Any]]:
    places = spans(words)
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
