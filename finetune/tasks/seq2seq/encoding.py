"""Pairs of texts as tokens: what the model reads, what it writes, and what of that is learned.

Texts are read in `pairs` and `conversations`. An encoder-decoder has a source and a target of its own, which its
decoder reads shifted right behind a start token; a decoder reads one sequence, of which the target alone is learned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from finetune.answering.frame import Frame
from finetune.data.examples import Example, Examples
from finetune.tasks.base import encodings
from finetune.tasks.seq2seq.pairs import Pair
from pretrain.data.batch import IGNORED
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.errors import check
from pretrain.tokenizer.base import reading_markup

log = logging.getLogger(__name__)


class Cuts(NamedTuple):
    """What of P pairs was not kept whole."""

    sources: int  # pairs whose source was cut
    targets: int  # pairs whose target was cut
    longest_source: int  # tokens, before cutting
    longest_target: int  # tokens, before cutting

    def log(self, num_pairs: int, max_source_tokens: int, max_target_tokens: int) -> None:
        """Write the counts to the log."""
        log.info(
            "%d pairs; %d sources cut to task.max_source_tokens=%d (the longest has %d), %d targets cut to "
            "task.max_target_tokens=%d (the longest has %d)",
            *(num_pairs, self.sources, max_source_tokens, self.longest_source),
            *(self.targets, max_target_tokens, self.longest_target),
        )


class EncodedPairs(NamedTuple):
    """The examples of the pairs that have tokens."""

    examples: Examples  # P
    pairs: list[Pair]  # P
    cuts: Cuts


class _Ids(NamedTuple):
    """A pair as ids, whole."""

    source: list[int]
    target: list[int] | None


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    frame: Frame,
    *,
    max_source_tokens: int,
    max_target_tokens: int,
    labelled: bool = True,
    max_faults: float = 0.0,
    target_tokenizer: Tokenizer | None = None,
) -> EncodedPairs:
    """Encode pairs, all of which have targets if they are `labelled`; else their sources alone.

    Targets are cut into tokens by a tokenizer of their own if there is one.

    An encoder-decoder's source is prefix, text and suffix, its target begin, text and end, as the labels of BART, T5
    and Marian are; a decoder's sequence is prefix, source, target and end. The limits count the tokens around texts. A
    longer source loses its end, of a decoder its beginning, so that the question or the marks before the answer stay;
    the tokens around it are kept. A longer target loses its end, and the end token with it: the model does not learn to
    stop there.

    Source and target become tokens apart, so that in training the source has the tokens that it has in prediction.

    A pair of which a side has no token is a bad record and left out. Raises `DataError` for more of these than
    `max_faults`, `ConfigError` for limits without room for text.
    """
    _check_room(frame, max_source_tokens, max_target_tokens)
    bad = BadRecords("pairs", allowed=max_faults)
    kept: list[Pair] = []
    examples: list[Example] = []
    sources, targets = [], []  # tokens of each, before cutting
    ids_of_pairs = _ids(pairs, tokenizer, target_tokenizer or tokenizer, labelled=labelled, markup=frame.markup)
    for pair, ids in zip(pairs, ids_of_pairs, strict=True):
        with bad.counted(pair.place):
            for side, found, text in (("source", ids.source, pair.source), ("target", ids.target, pair.target)):
                if found == []:
                    raise BadRecordError(f"no token in a {side}", f"{text!r:.80}")
            source = _around_source(frame, ids.source)
            target = None if ids.target is None else _around_target(frame, ids.target)
            sources.append(len(source))
            targets.append(len(target or ()))
            source = _shortened(source, frame, max_source_tokens)
            target = None if target is None else target[:max_target_tokens]
            examples.append(_example(source, target, frame))
            kept.append(pair)
    bad.settle(len(kept))
    cuts = Cuts(
        sum(size > max_source_tokens for size in sources),
        sum(size > max_target_tokens for size in targets),
        max(sources),
        max(targets),
    )
    cuts.log(len(kept), max_source_tokens, max_target_tokens)
    return EncodedPairs(Examples.of(examples), kept, cuts)


def _check_room(frame: Frame, max_source_tokens: int, max_target_tokens: int) -> None:
    around_source = len(_around_source(frame, []))
    around_target = len(_around_target(frame, []))
    for side, limit, around in (
        ("source", max_source_tokens, around_source),
        ("target", max_target_tokens, around_target),
    ):
        rule = f"must be above {around}, the special tokens of a {side}"
        check(limit > around, f"task.max_{side}_tokens", limit, rule)


def _ids(
    pairs: Sequence[Pair], tokenizer: Tokenizer, of_targets: Tokenizer, *, labelled: bool, markup: bool
) -> Iterator[_Ids]:
    sources = encodings(tokenizer, [pair.source for pair in pairs], special_tokens=False)
    targets = encodings(of_targets, [pair.target for pair in pairs] if labelled else [], special_tokens=False)
    with reading_markup(tokenizer, markup=markup), reading_markup(of_targets, markup=markup):
        for source in sources:
            yield _Ids(source.ids, next(targets).ids if labelled else None)


def _around_source(frame: Frame, ids: list[int]) -> list[int]:
    return frame.prefix + ids + ([] if frame.start is None else frame.suffix)


def _around_target(frame: Frame, ids: list[int]) -> list[int]:
    return frame.begin + ids + frame.end


def _shortened(source: list[int], frame: Frame, limit: int) -> list[int]:
    """Return at most `limit` ids of a source: of an encoder-decoder's the first and its suffix, else the last."""
    if len(source) <= limit:
        return source
    if frame.start is None:
        return frame.prefix + source[len(source) - limit + len(frame.prefix) :]
    return source[: limit - len(frame.suffix)] + frame.suffix


def _example(source: list[int], target: list[int] | None, frame: Frame) -> Example:
    """Return the tokens that the decoder reads, each with the one that it should write next."""
    if frame.start is not None:
        tokens = [frame.start, *(target or [])[:-1]]
        return Example(tokens, [0] * len(tokens), targets=target, source=source)
    if target is None:
        return Example(source, [0] * len(source))
    tokens = source + target[:-1]
    return Example(tokens, [0] * len(tokens), targets=[IGNORED] * (len(source) - 1) + target)
