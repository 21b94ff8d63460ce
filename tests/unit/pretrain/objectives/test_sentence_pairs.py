"""Pairs: what they consist of, how often their parts belong together, and that none is longer than its sequence."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.batch import IGNORED, Slots, Vocabulary
from pretrain.objectives.sentence_pairs import APART, Pairing, Sentences

SIZE, SPECIAL = 10_000, 10
KINDS = [Sentences.nsp, Sentences.sop]


def vocabulary(prefix: list[int], suffix: list[int]) -> Vocabulary:
    """Return one in which odd ids begin words."""
    ids = np.arange(SIZE)
    special = ids < SPECIAL
    return Vocabulary(special, special | (ids % 2 == 1), special, 3, prefix, suffix)


def slots_of(slots: list[list[list[int]]], epoch: int = 0) -> Slots:
    """Return slots of sequences of ids."""
    sequences = list(itertools.chain(*slots))
    tokens = np.array(list(itertools.chain(*sequences)))
    offsets = np.cumsum([0, *map(len, sequences)])
    bounds = np.cumsum([0, *map(len, slots)])
    keys = np.array([[0, epoch, index] for index in range(len(slots))])
    return Slots(tokens, tokens, offsets.astype(np.int32), offsets[bounds], keys)


def cut(made) -> list[list[int]]:
    return [part.tolist() for part in np.split(made.slots.tokens, made.slots.offsets[1:-1])]


def text(first: int, length: int) -> list[int]:
    """Return ids in a row, all of them beginning words: each occurs once in a test, so it says where it comes from."""
    return list(range(first, first + 2 * length, 2))


def parts(sequence: list[int], prefix: list[int], suffix: list[int]) -> tuple[list[int], list[int]]:
    """Take a pair apart and check its frame."""
    assert sequence[: len(prefix)] == prefix
    body = sequence[len(prefix) :]
    ends = [at for at in range(len(body)) if body[at : at + len(suffix)] == suffix]
    assert len(ends) == 2 and ends[1] == len(body) - len(suffix)
    return body[: ends[0]], body[ends[0] + len(suffix) : ends[1]]


@pytest.mark.parametrize("sentences", KINDS)
@settings(max_examples=150)
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=4),
    frame=st.sampled_from([([1], [2]), ([1], [2, 2]), ([1, 4], [2])]),
    framed=st.sampled_from(["whole", "cut before", "cut after"]),
    seed=st.integers(0, 5),
)
def test_pairs_are_made_of_the_text_of_their_slot(sentences, lengths, frame, framed, seed):
    prefix, suffix = frame
    first, slots, texts = 11, [], []
    for slot in lengths:
        slots.append([])
        texts.append([])
        for length in slot:
            content = text(first, length)
            first += 2 * length
            texts[-1].append(content)
            before, after = prefix * (framed != "cut before"), suffix * (framed != "cut after")
            slots[-1].append([*before, *content, *after])
    given_slots = slots_of(slots)
    made = Pairing(sentences, vocabulary(prefix, suffix), seed)(given_slots)
    found = cut(made)
    assert len(found) == len(made.labels) == sum(map(len, slots))
    assert made.slots.offsets[-1] == made.slots.slots[-1] == len(made.slots.tokens) == len(made.segments)
    assert (made.slots.keys == given_slots.keys).all() and (made.slots.following == IGNORED).all()
    segments = np.split(made.segments, made.slots.offsets[1:-1])
    bounds = np.cumsum([0, *map(len, slots)])
    assert made.slots.slots.tolist() == made.slots.offsets[bounds].tolist()
    for number, (sequence, before) in enumerate(zip(found, itertools.chain(*slots), strict=True)):
        slot = int(bounds.searchsorted(number, side="right")) - 1
        content, label = texts[slot][number - bounds[slot]], made.labels[number]
        assert len(sequence) <= len(before)
        room = len(before) - len(prefix) - 2 * len(suffix)
        possible = min(room, len(content)) >= 2 and (sentences is Sentences.sop or len(slots[slot]) > 1)
        assert (label != IGNORED) == possible
        if not possible:
            assert sequence == before and not segments[number].any()
            continue
        one, other = parts(sequence, prefix, suffix)
        assert one and other
        assert segments[number].tolist() == [0] * (len(sequence) - len(other) - len(suffix)) + [1] * (
            len(other) + len(suffix)
        )
        kept = content[: min(room, len(content))]
        if label == 0:
            assert one + other == kept
        elif sentences is Sentences.sop:
            assert other + one == kept
        else:
            assert one == kept[: len(one)]
            [source] = [number for number, content in enumerate(texts[slot]) if other[0] in content]
            assert texts[slot][source] != content
            begin = texts[slot][source].index(other[0])
            assert other == texts[slot][source][begin : begin + len(other)]
            assert len(other) == min(len(kept) - len(one), len(texts[slot][source]))


def many(epoch: int = 0) -> Slots:
    """Return 3000 slots of four documents of six words, the third of one token only."""
    slots = [[[1, *text(11 + 12 * number, 6), 2] for number in range(4)] for _ in range(3000)]
    for slot in slots:
        slot[2] = [1, 11 + 48, 2]
    return slots_of(slots, epoch)


@pytest.mark.parametrize("sentences", KINDS)
def test_half_of_the_pairs_are_apart_and_every_cut_is_as_likely(sentences):
    made = Pairing(sentences, vocabulary([1], [2]), 1)(many())
    pairs = made.labels != IGNORED
    assert pairs.sum() == 9000 and not pairs[2::4].any()
    assert abs(made.labels[pairs].mean() - 0.5) < 5 * 0.5 / math.sqrt(9000)
    together = [parts(sequence, [1], [2]) for sequence, label in zip(cut(made), made.labels, strict=True) if label == 0]
    cuts = np.bincount([len(one) for one, _ in together], minlength=6)
    assert cuts[0] == 0 and cuts[5] == 0 and len(cuts) == 6  # five words are left of six: one place for the suffix
    for count in cuts[1:5]:
        assert abs(count / len(together) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(together))


def test_strangers_come_from_every_other_document_alike():
    made = Pairing(Sentences.nsp, vocabulary([1], [2]), 1)(many())
    source = {token: number for number in range(4) for token in text(11 + 12 * number, 6)}
    source[11 + 48] = 2
    drawn = np.zeros((4, 4))
    for number, (sequence, label) in enumerate(zip(cut(made), made.labels, strict=True)):
        if label == APART:
            drawn[number % 4, source[parts(sequence, [1], [2])[1][0]]] += 1
    assert not drawn.diagonal().any()
    for row in (0, 1, 3):
        shares, trials = drawn[row] / drawn[row].sum(), drawn[row].sum()
        assert all(abs(shares[other] - 1 / 3) < 5 * math.sqrt(2 / 9 / trials) for other in {0, 1, 2, 3} - {row})


def test_strangers_begin_anywhere_alike_whoever_they_are():
    made = Pairing(Sentences.nsp, vocabulary([1], [2]), 1)(many())
    place = {token: (number, at) for number in (0, 1, 3) for at, token in enumerate(text(11 + 12 * number, 6))}
    begun = np.zeros((4, 4, 6))
    for number, (sequence, label) in enumerate(zip(cut(made), made.labels, strict=True)):
        other = parts(sequence, [1], [2])[1] if label == APART else []
        if len(other) == 2:
            begun[number % 4, *place[other[0]]] += 1
    assert not begun[:, :, 5].any()
    for counts in (
        begun.sum(axis=(0, 1))[:5],
        *(begun[one, other, :5] for one in (0, 1, 3) for other in {0, 1, 3} - {one}),
    ):
        trials = counts.sum()
        assert trials > 50 and all(abs(count / trials - 0.2) < 5 * math.sqrt(0.16 / trials) for count in counts)


@pytest.mark.parametrize("sentences", KINDS)
def test_parts_begin_with_words(sentences):
    """A part that went on a word would give its place away."""
    draw = np.random.default_rng(0)
    documents = [[[1, 11, *draw.integers(10, SIZE, 30).tolist(), 2] for _ in range(3)] for _ in range(200)]
    made = Pairing(sentences, vocabulary([1], [2]), 1)(slots_of(documents))
    assert (made.labels != IGNORED).sum() > 590
    for sequence in cut(made):
        for part in parts(sequence, [1], [2]):
            assert part[0] % 2 == 1


@pytest.mark.parametrize("sentences", KINDS)
def test_pairs_are_the_same_in_any_company_and_others_in_another_epoch(sentences):
    pairing = Pairing(sentences, vocabulary([1], [2]), 1)
    whole = pairing(many())
    for slot in (0, 7, 2999):
        begin, end = slot * 4, slot * 4 + 4
        one = slots_of(
            [[[1, *text(11 + 12 * number, 6), 2] for number in range(2)] + [[1, 59, 2]] + [[1, *text(47, 6), 2]]]
        )
        alone = pairing(one._replace(keys=np.array([[0, 0, slot]])))
        assert alone.labels.tolist() == whole.labels[begin:end].tolist()
        assert cut(alone) == cut(whole)[begin:end]
    assert (pairing(many(epoch=1)).labels != whole.labels).mean() > 0.3
    assert (Pairing(sentences, vocabulary([1], [2]), 2)(many()).labels != whole.labels).mean() > 0.3
