"""Makes slots of sequences of ids, a vocabulary for them, and takes inputs apart again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pretrain.data.batch import IGNORED, Inputs, Slots, Vocabulary
from pretrain.tokenizer.base import SENTINEL

START, PREFIX, SUFFIX, MASK, STOP = 0, 1, 2, 3, 11  # a sentence ends with STOP
MARKS = {"<|fim_prefix|>": 4, "<|fim_suffix|>": 5, "<|fim_middle|>": 6, "[R]": 7, "[S]": 8}
FIRST_TEXT, FIRST_SENTINEL, SIZE = 10, 5000, 5400  # ids in between are text


def vocabulary(*, prefix: Sequence[int] = (PREFIX,), suffix: Sequence[int] = (SUFFIX,)) -> Vocabulary:
    ids = np.arange(SIZE)
    special = (ids < FIRST_TEXT) | (ids >= FIRST_SENTINEL)
    sentinels = list(range(FIRST_SENTINEL, SIZE))
    names = {SENTINEL.format(number): token for number, token in enumerate(sentinels)} | MARKS | {"<pad>": START}
    return Vocabulary(
        special,
        special,
        special,
        MASK,
        list(prefix),
        list(suffix),
        ids=names,
        sentinels=sentinels,
        ends_sentence=ids == STOP,
        start=START,
    )


def slots_of(slots: Sequence[Sequence[Sequence[int]]]) -> Slots:
    """Return slots of sequences; nothing follows the last token of one."""
    sequences = list(itertools.chain(*slots))
    tokens = np.array(list(itertools.chain(*sequences)))
    offsets = np.cumsum([0, *map(len, sequences)])
    following = np.append(tokens[1:], IGNORED)
    following[offsets[1:] - 1] = IGNORED
    bounds = np.cumsum([0, *map(len, slots)])
    keys = np.array([[0, 0, index] for index in range(len(slots))])
    return Slots(tokens, following, offsets.astype(np.int32), offsets[bounds], keys)


def random_slots(count: int, longest: int, *, seed: int = 0, cut: bool = True) -> Slots:
    """Return slots of one to four sequences of up to so many tokens of text; `cut`: some lack an end, or all text."""
    draw = np.random.default_rng(seed)
    slots = []
    for _ in range(count):
        slots.append([])
        for _ in range(draw.integers(1, 5)):
            text = draw.integers(FIRST_TEXT, 60, draw.integers(0 if cut else 1, longest + 1)).tolist()
            whole = [PREFIX, *text, SUFFIX]
            begin, end = (int(cut and draw.random() < 0.2) for _ in range(2))
            slots[-1].append(whole[begin : len(whole) - end] or [SUFFIX])
    return slots_of(slots)


def pieces(tokens: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens, offsets[1:-1])]


def texts(slots: Slots) -> list[tuple[list[int], list[int], list[int]]]:
    """Return what is before each text, the text, and what is after it."""
    found = []
    for piece in pieces(slots.tokens, slots.offsets):
        head, tail = piece[:1] if piece[0] == PREFIX else [], piece[-1:] if piece[-1] == SUFFIX else []
        found.append((head, piece[len(head) : len(piece) - len(tail)], tail))
    return found


def pairs(made: Inputs) -> list[tuple[list[int], list[int]]]:
    """Return source and target of each sequence; the decoder must see the target one place later, behind START."""
    assert made.source is not None
    assert made.offsets.dtype == made.source.offsets.dtype == np.int32
    targets = pieces(made.targets, made.offsets)
    for seen, target in zip(pieces(made.tokens, made.offsets), targets, strict=True):
        assert seen[0] == START and (seen[1:] == target[:-1] or set(target) == {IGNORED})
    return list(zip(pieces(*made.source), targets, strict=True))


def one_slot(slots: Slots, number: int) -> Slots:
    """Return one of the slots by itself, with its own key."""
    begin, end = slots.slots[number], slots.slots[number + 1]
    offsets = slots.offsets[(slots.offsets >= begin) & (slots.offsets <= end)] - begin
    keys = slots.keys[number : number + 1]
    own = np.array([0, end - begin])
    return Slots(slots.tokens[begin:end], slots.following[begin:end], offsets.astype(np.int32), own, keys)


def same_in_any_company(examples, slots: Slots) -> None:
    """Assert that what becomes of a slot alone is what becomes of it among others."""

    def sequences(made: Inputs) -> list[tuple]:
        columns = [pieces(made.tokens, made.offsets), pieces(made.targets, made.offsets)]
        return list(zip(*columns, *([pieces(*made.source)] if made.source else []), strict=True))

    alone = [sequences(examples(one_slot(slots, number))) for number in range(len(slots.keys))]
    assert sequences(examples(slots)) == list(itertools.chain(*alone))
