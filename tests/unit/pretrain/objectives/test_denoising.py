"""Denoising: a text is the target, its source has masks for spans of Poisson lengths, perhaps sentences shuffled."""

import itertools
import math

import numpy as np
import pytest
from slots_by_hand import (
    FIRST_TEXT,
    MASK,
    PREFIX,
    STOP,
    SUFFIX,
    pairs,
    random_slots,
    same_in_any_company,
    slots_of,
    texts,
    vocabulary,
)

from pretrain.data.batch import IGNORED, TokenizerParts
from pretrain.errors import ConfigError
from pretrain.objectives.denoising import DenoisingConfig


def examples(**settings):
    return DenoisingConfig(**settings).examples(vocabulary, 1, 512)


@pytest.mark.parametrize("settings", [{}, {"rate": 0.5, "mean_span": 0.3}, {"rate": 0.1, "mean_span": 30.0}])
def test_sources_lack_spans_and_targets_are_whole(settings):
    """Ids of a text ascend, so that what a source keeps says where its masks stand."""
    draw = np.random.default_rng(0)
    slots = slots_of([[[PREFIX, *range(20, 20 + draw.integers(1, 40)), SUFFIX] for _ in range(3)] for _ in range(100)])
    rate = DenoisingConfig(**settings).rate
    for (source, target), (_, text, _) in zip(pairs(examples(**settings)(slots)), texts(slots), strict=True):
        assert target == [PREFIX, *text, SUFFIX]
        assert (source[0], source[-1]) == (PREFIX, SUFFIX) and len(source) <= len(target)
        kept = [token for token in source[1:-1] if token != MASK]
        assert len(text) - len(kept) == max(round(len(text) * rate), 1)
        assert kept == sorted(kept)
        gone = [b - a > 1 for a, b in itertools.pairwise([19, *kept, text[-1] + 1])]
        groups = [list(group) for token, group in itertools.groupby(source[1:-1]) if token == MASK]
        assert all(len(group) == 1 for group in groups), "a token lies between two masks"
        masked = [False] * len(gone)
        seen = 0
        for token in source[1:-1]:
            masked[seen] |= token == MASK
            seen += token != MASK
        assert all(mask or not lost for lost, mask in zip(gone, masked, strict=True)), "what is gone has a mask"


def test_pieces_and_sequences_without_text():
    slots = slots_of([[[SUFFIX], [20], [PREFIX, 21], [PREFIX, SUFFIX]], [[22, 23, 24, SUFFIX]]])
    found = pairs(examples()(slots))
    assert found[:3] == [([SUFFIX], [IGNORED]), ([MASK], [20]), ([PREFIX, MASK], [PREFIX, 21])]
    assert found[3] == ([PREFIX, SUFFIX], [IGNORED, IGNORED])
    assert found[4][1] == [22, 23, 24, SUFFIX] and found[4][0].count(MASK) == 1


def test_lengths_are_poisson_and_places_alike():
    size, count = 400, 500
    slots = slots_of([[[*range(FIRST_TEXT, FIRST_TEXT + size)]] for _ in range(count)])
    lengths, gone = [], np.zeros(size)
    for source, _ in pairs(examples()(slots)):
        last, open_mask = FIRST_TEXT - 1, False
        for token in [*source, FIRST_TEXT + size]:
            if token == MASK:
                open_mask = True
                continue
            if open_mask:
                lengths.append(token - last - 1)
                gone[last + 1 - FIRST_TEXT : token - FIRST_TEXT] += 1
            last, open_mask = token, False
    assert sum(lengths) == count * 120  # 0.3 of the tokens
    # One span of each sequence is cut, so that a share of about 1 / 41 of all lengths is another one.
    shares = np.bincount(lengths, minlength=9)[:9] / len(lengths)
    for length, share in enumerate(shares):
        expected = math.exp(-3) * 3**length / math.factorial(length)
        assert abs(share - expected) < 5 * math.sqrt(expected / len(lengths)) + 1 / 41 / 3, length
    for part in np.split(gone, 8):
        assert abs(part.sum() / (count * 50) - 0.3) < 5 * math.sqrt(0.3 * 0.7 * 4 / (count * 50))


def test_sentences_are_permuted_every_order_alike():
    sentences = [[20, 21, STOP], [22, STOP], [23, 24, 25]]
    slots = slots_of([[[PREFIX, *itertools.chain(*sentences), SUFFIX], [30, 31]] for _ in range(3000)])
    made = examples(permute_sentences=True, rate=0.01)(slots)
    orders: dict[tuple[int, ...], int] = {}
    for source, target in pairs(made)[::2]:
        assert target == [PREFIX, *itertools.chain(*sentences), SUFFIX]
        # One token is masked: tell the order by the tokens that are left.
        tokens = [number for token in source for number, ids in enumerate(sentences) if token in ids and token != STOP]
        order = tuple(dict.fromkeys(tokens))
        orders[order] = orders.get(order, 0) + (len(order) == 3)
    whole = {order: count for order, count in orders.items() if len(order) == 3}
    assert len(whole) == 6
    mean = sum(whole.values()) / 6
    assert sum((count - mean) ** 2 / mean for count in whole.values()) < 20.5  # 5 degrees of freedom, 1 in 1,000


def test_the_span_that_is_cut_stands_anywhere():
    """The first and the last mask of a text stand for as many tokens, on average."""
    slots = slots_of([[[*range(20, 40)]] for _ in range(4000)])
    firsts, lasts = [], []
    for source, _ in pairs(examples()(slots)):
        if source.count(MASK) > 1:
            gaps = [19, *source, 40]
            sizes = [gaps[at + 1] - gaps[at - 1] - 1 for at, token in enumerate(gaps) if token == MASK]
            firsts.append(sizes[0])
            lasts.append(sizes[-1])
    assert len(firsts) > 2000
    assert abs(np.mean(firsts) - np.mean(lasts)) < 5 * math.sqrt(2 * np.var(firsts) / len(firsts))


@pytest.mark.parametrize("permute_sentences", [False, True])
def test_a_slot_alone_is_corrupted_as_in_company(permute_sentences):
    same_in_any_company(examples(permute_sentences=permute_sentences), random_slots(12, 30, seed=2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.rate=0\.6: above 0 and at most 0\.5"):
        DenoisingConfig(rate=0.6)
    with pytest.raises(ConfigError, match=r"objective\.mean_span=0: above 0"):
        DenoisingConfig(mean_span=0)
    with pytest.raises(ConfigError, match=r"objective=denoising: this tokenizer has no mask token"):
        DenoisingConfig().check_tokenizer(TokenizerParts(1, 1, False, {"<s>"}, 0), 512)
