"""Masking: rates and splits within binomial bounds over a million tokens, words whole, special tokens never touched."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from pretrain.data.batch import IGNORED, Slots, Vocabulary
from pretrain.objectives.masking import MAX_SPAN_RATE, Masking, MaskingConfig, Unit, word_starts

SIZE, CLS, SEP, MASK = 1000, 1, 2, 3
SPECIAL = 10  # the first ids are no text
GOES_ON = 700  # ids from here on go on a word
SIGMAS = 5.0


def vocabulary() -> Vocabulary:
    ids = np.arange(SIZE)
    return Vocabulary(ids < SPECIAL, (ids < GOES_ON), ids < SPECIAL, MASK, [CLS], [SEP])


def random_slots(num_slots: int, seq_len: int, seed: int = 0) -> Slots:
    """Return full slots of framed documents of 3 to 60 tokens, the last one cut."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(SPECIAL, SIZE, num_slots * seq_len)
    starts = []
    for slot in range(num_slots):
        at = slot * seq_len
        while at < (slot + 1) * seq_len:
            starts.append(at)
            end = at + int(draw.integers(3, 61))
            tokens[at] = CLS
            if end <= (slot + 1) * seq_len:
                tokens[end - 1] = SEP
            at = end
    offsets = np.array([*starts, num_slots * seq_len], dtype=np.int32)
    keys = np.stack([np.zeros(num_slots, int), np.zeros(num_slots, int), np.arange(num_slots)], axis=1)
    return Slots(tokens, np.full_like(tokens, IGNORED), offsets, np.arange(num_slots + 1) * seq_len, keys)


SLOTS = random_slots(2000, 500)
TEXT = SLOTS.tokens >= SPECIAL
STARTS = word_starts(SLOTS.tokens, SLOTS.offsets, vocabulary())
SPLITS = [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.3)]


def masked(slots: Slots = SLOTS, seed: int = 1, **settings) -> tuple[np.ndarray, np.ndarray]:
    return Masking(MaskingConfig(**settings), vocabulary(), MASK, seed)(slots)


def assert_share(hits: float, trials: int, share: float, variance: float | None = None) -> None:
    """Compare a count with its expectation; `variance` is that of one trial, if it is not the binomial one."""
    deviation = math.sqrt(trials * (share * (1 - share) if variance is None else variance))
    assert abs(hits - trials * share) <= SIGMAS * deviation + 1e-9, (hits / trials, share)


def span_law() -> np.ndarray:
    weights = np.array([0.2 * 0.8 ** (length - 1) for length in range(1, 11)])
    return weights / weights.sum()


def variance_of_a_token(unit: Unit, rate: float) -> float:
    """Return the variance of the number of chosen tokens, divided by the tokens."""
    words = np.bincount(STARTS.cumsum()[TEXT])
    squares = float((words.astype(float) ** 2).sum()) / TEXT.sum()
    if unit is Unit.tokens:
        return rate * (1 - rate)
    if unit is Unit.whole_words:
        return rate * (1 - rate) * squares
    # Of words in an alternating renewal process, for long stretches (Cox, "Renewal theory", chapter 7), twice over for
    # the tokens of a word.
    lengths = np.arange(1, 11)
    mean = float(span_law() @ lengths)
    spread = float(span_law() @ lengths**2) - mean**2
    gap = mean * (1 - rate) / rate
    per_word = (gap * (gap - 1) * mean**2 + spread * gap**2) / (mean + gap) ** 3
    return per_word * 2 * squares


def test_words_begin_where_a_token_says_so_or_the_one_before_or_a_sequence():
    """One token at a time, also where packing cut a sequence in the middle of a word."""
    draw = np.random.default_rng(4)
    known = Vocabulary(np.zeros(9, bool), np.arange(9) % 3 == 0, np.arange(9) % 4 == 1, None, [], [])
    tokens, offsets = draw.integers(0, 9, 200), np.array([0, 1, 7, 8, 50, 133, 200])
    begins = [
        place in offsets or token % 3 == 0 or tokens[place - 1] % 4 == 1 for place, token in enumerate(tokens.tolist())
    ]
    assert word_starts(tokens, offsets, known).tolist() == begins


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.7])
def test_the_rate_is_the_configured_one(unit, rate):
    _, targets = masked(unit=unit, rate=rate)
    assert len(targets) == 1_000_000
    assert_share((targets != IGNORED).sum(), TEXT.sum(), rate, variance_of_a_token(unit, rate))


@pytest.mark.parametrize("unit", Unit)
def test_the_rate_is_the_same_everywhere_in_a_slot(unit):
    """Also at its edges, and in the first and last words of documents."""
    chosen = (masked(unit=unit)[1] != IGNORED).reshape(-1, 500)
    text = TEXT.reshape(-1, 500)
    for place in (1, 2, 3, 5, 9, 20, 250, 490, 497, 498, 499):
        assert_share(chosen[text[:, place], place].sum(), text[:, place].sum(), 0.15)
    for after in (1, 2, 4):
        places = SLOTS.offsets[:-1] + after
        places = places[places < len(TEXT)]
        places = places[TEXT[places]]
        assert_share((masked(unit=unit)[1][places] != IGNORED).sum(), len(places), 0.15, 2 * 0.15 * 0.85)


def test_slots_begin_in_the_middle_of_spans_and_gaps():
    """Each word is hidden as often as any other, and so is each pair of neighbours."""
    num_slots, words, rate = 50_000, 12, 0.5
    tokens = np.full(num_slots * words, SPECIAL)
    offsets = np.arange(num_slots + 1) * words
    keys = np.stack([np.zeros(num_slots, int), np.zeros(num_slots, int), np.arange(num_slots)], axis=1)
    slots = Slots(tokens, tokens, offsets.astype(np.int32), offsets, keys)
    hidden = (masked(slots, unit=Unit.spans, rate=rate)[1] != IGNORED).reshape(-1, words)
    # A span begins with every (mean span + mean gap)-th word, and leaves its neighbour shown.
    both = rate - rate / float(span_law() @ np.arange(1, 11))
    for place in range(words):
        assert_share(hidden[:, place].sum(), num_slots, rate)
        if place:
            assert_share((hidden[:, place - 1] & hidden[:, place]).sum(), num_slots, both)


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize(("mask_share", "random_share"), SPLITS)
def test_the_split_is_the_configured_one(unit, mask_share, random_share):
    shown, targets = masked(unit=unit, mask_share=mask_share, random_share=random_share)
    chosen = targets != IGNORED
    assert (targets[chosen] == SLOTS.tokens[chosen]).all()
    assert (shown[~chosen] == SLOTS.tokens[~chosen]).all()
    before, after = targets[chosen], shown[chosen]
    same_by_chance = random_share / (SIZE - SPECIAL)
    together = (
        variance_of_a_token(unit, 0.15) / 0.15 if unit is Unit.spans else 1.0
    )  # tokens of a span share their fate
    for hits, share in (
        ((after == MASK).sum(), mask_share),
        ((after == before).sum(), 1 - mask_share - random_share + same_by_chance),
        (((after != before) & (after != MASK)).sum(), random_share - same_by_chance),
    ):
        assert_share(hits, len(before), share, share * (1 - share) * together)


@pytest.mark.parametrize("unit", Unit)
def test_special_tokens_are_never_chosen_nor_drawn(unit):
    shown, targets = masked(unit=unit, rate=0.5, mask_share=0.0, random_share=1.0)
    assert (targets[~TEXT] == IGNORED).all()
    assert (shown[~TEXT] == SLOTS.tokens[~TEXT]).all()
    drawn = shown[targets != IGNORED]
    assert drawn.min() == SPECIAL and drawn.max() == SIZE - 1
    for count in np.bincount(drawn, minlength=SIZE)[SPECIAL:]:
        assert_share(count, len(drawn), 1 / (SIZE - SPECIAL))


@pytest.mark.parametrize("unit", [Unit.whole_words, Unit.spans])
def test_words_are_whole(unit):
    chosen = masked(unit=unit, rate=0.4)[1] != IGNORED
    words = STARTS.cumsum() - 1
    of_word = np.bincount(words, weights=chosen)
    lengths = np.bincount(words)
    assert set(np.unique(of_word / lengths)) == {0.0, 1.0}
    assert lengths[of_word > 0].max() > 3


def test_single_tokens_are_not_words():
    chosen = masked(rate=0.4)[1] != IGNORED
    words = STARTS.cumsum() - 1
    assert (np.bincount(words, weights=chosen) / np.bincount(words) % 1).any()


def words_hidden(rate: float) -> list[np.ndarray]:
    """Return for each slot which of its words of text spans hide."""
    targets = masked(unit=Unit.spans, rate=rate)[1]
    begins = (STARTS & TEXT).reshape(-1, 500)
    return [slot[first] for slot, first in zip((targets != IGNORED).reshape(-1, 500), begins, strict=True)]


def test_spans_have_the_lengths_of_spanbert_and_words_between_them():
    runs = [
        [(hidden, len(list(group))) for hidden, group in itertools.groupby(slot.tolist())]
        for slot in words_hidden(0.15)
    ]
    inner = [run for slot in runs for run in slot[1:-1]]  # those at the edges of a slot are cut
    lengths = np.array([length for hidden, length in inner if hidden])
    assert lengths.max() == 10
    assert abs(lengths.mean() - 3.8) < 0.05
    # A long run is cut by an edge a little more often than a short one: of 340 words by ten at most.
    for length, share in enumerate(span_law(), start=1):
        assert abs((lengths == length).mean() / share - 1) < 0.03 + SIGMAS / math.sqrt(share * len(lengths))
    gaps = np.array([length for hidden, length in inner if not hidden])
    assert gaps.min() == 1


def test_a_span_has_one_fate():
    shown, targets = masked(unit=Unit.spans, mask_share=0.5, random_share=0.0)
    for slot in range(50):
        place = slice(slot * 500, (slot + 1) * 500)
        text = TEXT[place]
        chosen, hidden = (targets[place] != IGNORED)[text], (shown[place] == MASK)[text]
        for is_chosen, group in itertools.groupby(zip(chosen, hidden, strict=True), key=lambda pair: pair[0]):
            assert not is_chosen or len({fate for _, fate in group}) == 1


@pytest.mark.parametrize("unit", Unit)
def test_slots_are_masked_alike_alone_and_together(unit):
    whole = masked(unit=unit)
    for slot in (0, 1, 1999):
        begin, end = SLOTS.slots[slot], SLOTS.slots[slot + 1]
        inside = SLOTS.offsets[(SLOTS.offsets >= begin) & (SLOTS.offsets <= end)] - begin
        tokens = SLOTS.tokens[begin:end]
        alone = masked(
            Slots(tokens, tokens, inside, np.array([0, end - begin]), SLOTS.keys[slot : slot + 1]), unit=unit
        )
        assert all((one == other[begin:end]).all() for one, other in zip(alone, whole, strict=True))


@pytest.mark.parametrize("unit", Unit)
def test_another_epoch_or_seed_has_other_masks(unit):
    first = masked(unit=unit)[1] != IGNORED
    keys = SLOTS.keys.copy()
    keys[:, 1] = 1
    for other in (masked(SLOTS._replace(keys=keys), unit=unit), masked(unit=unit, seed=2)):
        both = first & (other[1] != IGNORED)
        assert_share(both.sum(), TEXT.sum(), 0.15**2, 3 * variance_of_a_token(unit, 0.15**2))


@pytest.mark.parametrize("unit", Unit)
def test_slots_without_text(unit):
    tokens = np.array([CLS, SEP, CLS])
    slots = Slots(tokens, tokens, np.array([0, 2, 3], dtype=np.int32), np.array([0, 2, 3]), np.zeros((2, 3), int))
    shown, targets = masked(slots, unit=unit, rate=0.79)
    assert shown.tolist() == tokens.tolist()
    assert (targets == IGNORED).all()


def test_everything_can_be_hidden():
    shown, targets = masked(rate=1.0, mask_share=1.0, random_share=0.0, unit=Unit.whole_words)
    assert (shown[TEXT] == MASK).all() and (targets[TEXT] == SLOTS.tokens[TEXT]).all()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.1}, "rate"),
        ({"rate": 0.8, "unit": Unit.spans}, "rate"),
        ({"mask_share": -0.1}, "mask_share"),
        ({"mask_share": 0.8, "random_share": 0.3}, "random_share"),
    ],
)
def test_refuses_by_name(settings, key):
    with pytest.raises(ValueError, match=rf"objective\.masking\.{key}="):
        MaskingConfig(**settings)
    assert MaskingConfig(rate=MAX_SPAN_RATE, unit=Unit.spans).rate == MAX_SPAN_RATE


def digest() -> str:
    inputs, targets = zip(*(masked(random_slots(3, 50), seed=7, unit=unit) for unit in Unit), strict=True)
    return hashlib.sha256(np.concatenate([*inputs, *targets]).astype("<i8").tobytes()).hexdigest()


def test_masks_are_those_of_every_version_before():
    """A run that resumes under a newer version must see the masks that the older one would have drawn."""
    assert digest() == "899be178232cc5db7744b0f78b834bb0b2226ff2b9bd9a7f5a9a1e56e2a904e4"
