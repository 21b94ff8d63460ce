"""Decoders' objectives beside causal_lm: targets after a prefix only, and texts with their middle at the end."""

import math

import numpy as np
import pytest
from slots_by_hand import MARKS, PREFIX, SUFFIX, pieces, random_slots, same_in_any_company, slots_of, texts, vocabulary

from pretrain.data.batch import IGNORED, TokenizerParts
from pretrain.errors import ConfigError
from pretrain.objectives.fill_in_the_middle import FillInTheMiddleConfig
from pretrain.objectives.prefix_lm import PrefixLMConfig

BEFORE, AFTER, MIDDLE = (MARKS[name] for name in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))


def middles(**settings):
    return FillInTheMiddleConfig(**settings).examples(vocabulary, 1, 512)


def parts(piece: list[int]) -> tuple[bool, list[int], list[int]]:
    """Return whether the suffix comes first, what is in front of the middle's mark in the text's order, and the rest.

    With the suffix first the prefix stands behind the mark, so what is returned is empty and the rest.
    """
    before, after, middle = (piece.index(mark) for mark in (BEFORE, AFTER, MIDDLE))
    assert before < after < middle
    suffix_first = after == before + 1
    return suffix_first, piece[before + 1 : after], piece[after + 1 : middle]


@pytest.mark.parametrize("spm", [0.0, 0.5, 1.0])
def test_the_parts_of_a_text_rebuild_it(spm):
    slots = random_slots(60, 30)
    made = middles(rate=1.0, spm=spm)(slots)
    assert made.offsets.tolist() == slots.offsets.tolist(), "no sequence changes its length"
    rewritten = 0
    for piece, targets, (head, text, tail) in zip(
        pieces(made.tokens, made.offsets), pieces(made.targets, made.offsets), texts(slots), strict=True
    ):
        if len(text) <= 3:
            assert piece == [*head, *text, *tail] and targets == [*piece[1:], IGNORED]
            continue
        rewritten += 1
        _, prefix, suffix = parts(piece)
        rest = piece[piece.index(MIDDLE) + 1 : len(piece) - len(tail)]
        assert piece[: len(head)] == head and piece[len(piece) - len(tail) :] == tail
        assert [*prefix, *rest, *suffix] == text[:-3]
        assert targets == [*piece[1:], IGNORED if tail else SUFFIX], "the end of the middle is a target"
        if spm in (0.0, 1.0):
            assert (prefix == []) or spm == 0.0
    assert rewritten > 80


def test_rates_and_cuts_are_the_configured_ones():
    slots = slots_of([[[PREFIX, *range(20, 27), SUFFIX]] * 4 for _ in range(3000)])
    made = middles(rate=0.5, spm=0.25)(slots)
    found = [piece for piece in pieces(made.tokens, made.offsets) if MIDDLE in piece]
    assert abs(len(found) / 12000 - 0.5) < 5 * math.sqrt(0.25 / 12000)
    # With four tokens left the prefix has from 0 to 4, and is empty by two cuts at 0 to 4: 9 ways of 25.
    first = sum(parts(piece)[0] for piece in found) / len(found)
    expected = 0.25 + 0.75 * 9 / 25
    assert abs(first - expected) < 5 * math.sqrt(0.25 / len(found))
    suffixes = np.bincount([len(parts(piece)[2]) for piece in found], minlength=5) / len(found)
    for length, share in enumerate(suffixes):
        ways = 2 * (4 - length) + 1  # both cuts at most there, one of them there
        assert abs(share - ways / 25) < 5 * math.sqrt(ways / 25 / len(found))


def test_a_cut_document_without_ids_at_its_end_ends_with_what_leads_the_next():
    known = vocabulary(prefix=[PREFIX], suffix=[])
    slots = slots_of([[[PREFIX, *range(20, 40)]]])._replace(following=np.full(21, 77))
    made = FillInTheMiddleConfig(rate=1.0).examples(lambda: known, 1, 512)(slots)
    assert made.targets[-1] == PREFIX and made.targets[:-1].tolist() == made.tokens[1:].tolist()
    same = FillInTheMiddleConfig(rate=0.0).examples(lambda: known, 1, 512)(slots)
    assert same.tokens.tolist() == slots.tokens.tolist() and set(same.targets.tolist()) == {77}


def test_a_prefix_has_no_targets_and_every_length_is_as_likely():
    slots = slots_of([[[PREFIX, *range(20, 24)], [30]] for _ in range(6000)])
    made = PrefixLMConfig().examples(vocabulary, 1, 512)(slots)
    assert (made.tokens is slots.tokens) and made.targets[5::6].tolist() == slots.following[5::6].tolist()
    targets = np.array(pieces(made.targets, made.offsets)[::2])
    first = (targets != IGNORED).argmax(axis=1)
    assert np.array_equal(np.where(np.arange(5) >= first[:, None], [20, 21, 22, 23, IGNORED], IGNORED), targets)
    counts = np.bincount(first, minlength=4)
    assert len(counts) == 4 and ((counts - 1500) ** 2 / 1500).sum() < 16.3  # 3 degrees of freedom, 1 in 1,000


@pytest.mark.parametrize("config", [FillInTheMiddleConfig(), PrefixLMConfig()])
def test_a_slot_alone_is_rewritten_as_in_company(config):
    same_in_any_company(config.examples(vocabulary, 1, 512), random_slots(12, 30, seed=2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.spm=1\.5: must lie in \[0, 1\]"):
        FillInTheMiddleConfig(spm=1.5)
    parts_of = TokenizerParts(0, 0, False, set(MARKS), 0)
    with pytest.raises(ConfigError, match=r"objective\.suffix_mark=<\|hole\|>: not a token of this tokenizer"):
        FillInTheMiddleConfig(suffix_mark="<|hole|>").check_tokenizer(parts_of, 512)
    with pytest.raises(ConfigError, match=r"tokenizer\.suffix: this tokenizer puts no token around a document"):
        FillInTheMiddleConfig().check_tokenizer(parts_of, 512)
