"""Span corruption: texts can be rebuilt, spans are those of T5's rule, and a tokenizer must have the sentinels."""

import itertools
import math

import numpy as np
import pytest
from slots_by_hand import (
    FIRST_SENTINEL,
    FIRST_TEXT,
    MARKS,
    PREFIX,
    START,
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
from pretrain.objectives.draws import Use, uniform
from pretrain.objectives.span_corruption import Denoiser, SpanCorruption, SpanCorruptionConfig

T5 = SpanCorruptionConfig()
SETTINGS = [
    T5,
    SpanCorruptionConfig(density=0.5, mean_span=1.0),
    SpanCorruptionConfig(density=0.9, mean_span=2.0),
    SpanCorruptionConfig(density=0.25, mean_span=None),
    SpanCorruptionConfig(
        mixture=[
            Denoiser(mark="[R]", weight=2.0),
            Denoiser(density=0.5, mean_span=8.0),
            Denoiser(density=0.25, mean_span=None, mark="[S]"),
        ]
    ),
]


def examples(config: SpanCorruptionConfig, seed: int = 1):
    return SpanCorruption(config.denoisers, vocabulary(), START, seed)


def rebuilt(source: list[int], target: list[int]) -> list[int]:
    """Put the spans of a target where their sentinels stand in the source."""
    spans, last = {}, None
    for token in target:
        if token >= FIRST_SENTINEL:
            spans[last := token] = []
        elif last is not None:
            spans[last].append(token)
    assert list(spans) == list(range(FIRST_SENTINEL, FIRST_SENTINEL + len(spans))), "each once, in order"
    return [each for token in source for each in spans.get(token, [token])]


@pytest.mark.parametrize("config", SETTINGS)
def test_source_and_target_rebuild_the_sequence(config):
    slots = random_slots(60, 40)
    whole = texts(slots)
    assert {len(text) for _, text, _ in whole} >= {0, 1, 2, 3}, "short ones, too"
    marks = [MARKS[each.mark] for each in config.denoisers if each.mark]
    for (source, target), (head, text, tail) in zip(pairs(examples(config)(slots)), whole, strict=True):
        if not text:
            assert set(target) == {IGNORED} and source
            continue
        assert target[-1] == SUFFIX and target[-2] >= FIRST_SENTINEL and target[0] == FIRST_SENTINEL
        spans = target[:-2]
        lead = source[len(head) : len(head) + 1] if source[len(head)] in marks else []
        assert source[: len(head)] == head and source[len(source) - len(tail) :] == tail
        assert rebuilt([token for token in source if token not in lead], spans) == [*head, *text, *tail]
        assert all(max(pair) < FIRST_SENTINEL or min(pair) < FIRST_SENTINEL for pair in itertools.pairwise(source))
        assert len(source) <= len(head) + len(text) + len(tail) + len(lead)


def slowly(text: list[int], numbers: list[float], density: float, mean_span: float) -> tuple[list[int], list[int]]:
    """Corrupt a text one token at a time, as the rule says, with one number a token."""
    length = len(text)
    dropped = min(max(round(length * density), 1), max(length - 1, 1))
    spans = min(max(round(dropped / mean_span), 1), max(length - dropped, 1))

    def parts(items: int, drawn: list[float]) -> list[int]:
        if not items:
            return [0]
        chosen = sorted(sorted(range(1, items), key=lambda item: drawn[item])[: spans - 1])
        return [end - begin for begin, end in zip([0, *chosen], [*chosen, items], strict=True)]

    lengths, gaps = parts(dropped, numbers[:dropped]), parts(length - dropped, numbers[dropped:])
    source, target, at = [], [], 0
    for number, (gap, span) in enumerate(zip(gaps, lengths, strict=True)):
        source += [*text[at : at + gap], FIRST_SENTINEL + number]
        target += [FIRST_SENTINEL + number, *text[at + gap : at + gap + span]]
        at += gap + span
    return source, [*target, FIRST_SENTINEL + spans, SUFFIX]


@pytest.mark.parametrize("config", SETTINGS[:3])
def test_spans_are_those_of_the_rule(config):
    slots = random_slots(40, 50, seed=1)
    made, whole = pairs(examples(config, seed=9)(slots)), texts(slots)
    number = 0
    for slot, key in enumerate(slots.keys):
        sequences = np.count_nonzero(
            (slots.offsets[:-1] >= slots.slots[slot]) & (slots.offsets[1:] <= slots.slots[slot + 1])
        )
        own = whole[number : number + sequences]
        count = sum(len(text) for _, text, _ in own)
        numbers = uniform(9, Use.spans, key[None], np.array([count]), columns=1)[:, 0].tolist()
        for (head, text, tail), (source, target) in zip(own, made[number : number + sequences], strict=True):
            if text:
                expected, spans = slowly(text, numbers[: len(text)], config.density, config.mean_span)
                assert (source, target) == ([*head, *expected, *tail], spans)
            numbers = numbers[len(text) :]
        number += sequences


def test_density_and_length_of_spans_are_the_configured_ones():
    slots = slots_of([[[PREFIX, *range(FIRST_TEXT, FIRST_TEXT + 509), SUFFIX]] for _ in range(400)])
    made = pairs(SpanCorruptionConfig().examples(vocabulary, 1, 512)(slots))
    dropped = sum(token < FIRST_SENTINEL for _, target in made for token in target[:-1])
    spans = sum(token >= FIRST_SENTINEL for source, _ in made for token in source)
    assert (dropped, spans) == (400 * 76, 400 * 25)  # round(509 * 0.15), round(76 / 3)
    # A place in the middle is dropped as often as any other.
    gone = np.zeros(509)
    for _, target in made:
        gone[[token - FIRST_TEXT for token in target[:-1] if token < FIRST_SENTINEL]] += 1
    middle = gone[100:400].sum()
    assert abs(middle - 300 * 400 * 76 / 509) < 5 * math.sqrt(300 * 400 * 0.15 * 0.85 * 3)


def test_every_way_to_cut_is_as_likely():
    """Of 8 tokens 4 are dropped in 2 spans: 3 ways to cut each half, 9 together."""
    config = SpanCorruptionConfig(density=0.5, mean_span=2.0)
    slots = slots_of([[[*range(20, 28), SUFFIX]] * 3 for _ in range(3000)])
    seen: dict[tuple[int, ...], int] = {}
    for source, _ in pairs(examples(config)(slots)):
        seen[tuple(source)] = seen.get(tuple(source), 0) + 1
    assert len(seen) == 9
    chi_square = sum((count - 1000) ** 2 / 1000 for count in seen.values())
    assert chi_square < 26.1  # 8 degrees of freedom, 1 in 1,000


def test_denoisers_are_drawn_by_weight():
    config, slots = SETTINGS[4], slots_of([[[*range(20, 60), SUFFIX]] * 4 for _ in range(1000)])
    sources = [source for source, _ in pairs(examples(config)(slots))]
    drawn = {name: sum(MARKS[name] in source for source in sources) / 4000 for name in ("[R]", "[S]")}
    assert drawn == pytest.approx({"[R]": 0.5, "[S]": 0.25}, abs=5 * math.sqrt(0.25 / 4000))
    for source in sources:
        if MARKS["[S]"] in source:
            assert source == [MARKS["[S]"], *range(20, 50), FIRST_SENTINEL, SUFFIX]


@pytest.mark.parametrize("config", [T5, SETTINGS[4]])
def test_a_slot_alone_is_corrupted_as_in_company(config):
    same_in_any_company(examples(config), random_slots(12, 30, seed=2))


def tokenizer(**changes) -> TokenizerParts:
    return TokenizerParts(**{"prefix": 0, "suffix": 1, "mask": False, "tokens": {"</s>"}, "sentinels": 100} | changes)


@pytest.mark.parametrize(
    ("settings", "parts", "seq_len", "refusal"),
    [
        ({}, {"sentinels": 0}, 512, r"has 0 sentinels .*data\.seq_len=512 needs 27 with density=0\.15, mean_span=3\.0"),
        ({}, {}, 2048, r"has 100 sentinels .* needs 103 .*tokenizer\.sentinels"),
        ({}, {"suffix": 0}, 512, r"tokenizer\.suffix: this tokenizer puts no token after a document"),
        ({"start": "<go>"}, {}, 512, r"objective\.start=<go>: not a token of this tokenizer"),
        ({"mixture": [Denoiser(mark="[X]")]}, {}, 512, r"objective\.mixture\[0\]\.mark=\[X\]: not a token"),
        ({"density": 0.5, "mean_span": 1.0}, {}, 64, r"data\.seq_len=64: .* a side of up to 66 tokens"),
        ({"mixture": [Denoiser(mean_span=1.0, mark="</s>")]}, {}, 64, r"a side of up to 65 tokens"),
    ],
)
def test_tokenizers_and_lengths_that_do_not_fit_are_refused(settings, parts, seq_len, refusal):
    with pytest.raises(ConfigError, match=refusal):
        SpanCorruptionConfig(**settings).check_tokenizer(tokenizer(**parts), seq_len)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"density": 1.0}, r"objective\.density=1\.0"),
        ({"mean_span": 0.5}, r"objective\.mean_span=0\.5"),
        ({"mixture": [Denoiser(), Denoiser(weight=math.inf)]}, r"objective\.mixture\[1\]\.weight=inf"),
        ({"z_loss": math.inf}, r"objective\.z_loss=inf"),
        ({"mixture": [Denoiser(), Denoiser(weight=0.0)]}, r"objective\.mixture\[1\]\.weight=0\.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, refusal):
    with pytest.raises(ConfigError, match=refusal):
        SpanCorruptionConfig(**settings)


def test_no_side_is_longer_than_the_longest_sequence():
    for config in (T5, SpanCorruptionConfig(density=0.4, mean_span=1.0), SETTINGS[4]):
        slots = slots_of(
            [[[*range(20, 20 + length), *tail]] for length in range(1, 65) for tail in ([], [SUFFIX])][:-1]
        )
        for source, target in pairs(config.examples(vocabulary, 1, 64)(slots)):
            assert 0 < len(source) <= 64 and 0 < len(target) <= 64


@pytest.mark.parametrize(
    "config", [T5, SETTINGS[4], DenoisingConfig(), DenoisingConfig(rate=0.5, mean_span=6.0)], ids=repr
)
def test_the_lengths_of_both_sides_are_known_for_operations(config):
    slots = slots_of([[[*range(FIRST_TEXT, FIRST_TEXT + 299), SUFFIX]] * 4 for _ in range(100)])
    sides = np.array(
        [[len(source), len(target)] for source, target in pairs(config.examples(vocabulary, 1, 300)(slots))]
    )
    assert config.sides(300) == pytest.approx(sides.mean(axis=0).tolist(), rel=0.05)
