"""Answers against the official rules of SQuAD 1.1 and 2.0, written once more from their description.

The reference goes through a text character by character and counts words by taking them off a list.
"""

import gzip
import itertools
import json
import math
import os
import random
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.tasks.squad import best_threshold, normalise, score, squad_metrics

PUNCTUATION = {chr(code) for part in ((33, 48), (58, 65), (91, 97), (123, 127)) for code in range(*part)}
NOISE = [  # articles, punctuation, letters and spaces of other scripts
    *("the", "A", "an", "An,", "a.", "THE", "the-end", "l'an", "_the_", "a_n", "$5.0", "10%", "(", ")", "!?", ""),
    *(
        "–",
        "a–b",
        "«the»",
        "Ünïted",
        "ﬁnal",
        "İstanbul",
        "naïve",
        "e\u0301",
        "東京",
        "١٢",
        "\u00a0a\u00a0",
        "\u2003",
        "\t",
    ),
]


def reference_words(text):
    kept = [letter for letter in text.lower() if letter not in PUNCTUATION]
    runs = ["".join(run) for _, run in itertools.groupby(kept, key=str.isalnum)]
    bare = "".join(" " if run in ("a", "an", "the") else run for run in runs)
    return ["".join(run) for space, run in itertools.groupby(bare, key=str.isspace) if not space]


def reference_pair(guess, gold, version_2):
    guess, gold = reference_words(guess), reference_words(gold)
    exact = float(" ".join(guess) == " ".join(gold))
    if version_2 and not (guess and gold):
        return exact, float(guess == gold)
    left, shared = list(gold), 0
    for word in guess:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return exact, 0.0
    precision, recall = shared / len(guess), shared / len(gold)
    return exact, 2 * precision * recall / (precision + recall)


def reference(predictions, answers, version_2):
    """Mean exact match and mean F1, as shares."""
    sums = [0.0, 0.0]
    for guess, golds in zip(predictions, answers, strict=True):
        counted = [gold for gold in golds if not version_2 or reference_words(gold)] or [""]
        pairs = [reference_pair(guess, gold, version_2) for gold in counted]
        sums = [so_far + max(pair[part] for pair in pairs) for part, so_far in enumerate(sums)]
    return [value / len(predictions) for value in sums]


def random_answers(texts, seed, unanswerable):
    """1,000 questions: some spans of a text, each changed at its edges or inside, and a prediction made likewise."""
    draw = random.Random(seed)

    def disturbed(words):
        words = [draw.choice(NOISE) if draw.random() < 0.1 else word for word in words]
        words = [word.upper() if draw.random() < 0.1 else word for word in words]
        words[draw.randint(0, len(words)) :] = [] if draw.random() < 0.2 else [draw.choice(NOISE)] * draw.randint(0, 2)
        return draw.choice([" ", " ", "  ", "\n"]).join(words)

    predictions, answers = [], []
    for _ in range(1000):
        words = draw.choice(texts).split(" ")
        start = draw.randrange(len(words))
        span = words[start : start + draw.randint(1, 6)]
        answers.append([disturbed(span) for _ in range(draw.randint(1, 4))])
        predictions.append(
            draw.choice([disturbed(span), span[-1], draw.choice(NOISE), " ".join(words[start : start + 9])])
        )
        if unanswerable and draw.random() < 0.4:
            answers[-1] = []
            predictions[-1] = draw.choice([predictions[-1], "", " ", "the", "."])
    return predictions, answers


TEXTS = [paragraph for topic in sorted(topics) for paragraph in topics[topic].split("\n\n") if len(paragraph) > 100]


def check_against_reference(predictions, answers, version_2):
    values = squad_metrics(predictions, answers, version_2=version_2)
    expected = reference(predictions, answers, version_2)
    assert [values["exact_match"], values["f1"]] == pytest.approx(expected, abs=1e-12)
    assert 0.05 < values["exact_match"] < values["f1"] < 0.95  # the sample says something
    if version_2:
        for name, has in (("has_answer", True), ("no_answer", False)):
            some = [pair for pair in zip(predictions, answers, strict=True) if bool(pair[1]) == has]
            expected = reference(*zip(*some, strict=True), version_2)
            assert [values[f"{name}_exact_match"], values[f"{name}_f1"]] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("version_2", [False, True])
def test_a_thousand_random_predictions(version_2):
    predictions, answers = random_answers(TEXTS, 11, version_2)
    check_against_reference(predictions, answers, version_2)
    for text in itertools.chain(predictions, *answers):
        assert normalise(text) == " ".join(reference_words(text))


@pytest.mark.shared_data
@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data")
@pytest.mark.parametrize("version_2", [False, True])
def test_a_thousand_random_predictions_from_squad(version_2):
    name = f"dev-v{2 if version_2 else 1}.{0 if version_2 else 1}.json.gz"
    articles = json.loads(gzip.decompress((Path(os.environ["HEADWATER_DATA"]) / "squad" / name).read_bytes()))["data"]
    contexts = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    check_against_reference(*random_answers(contexts, 12, version_2), version_2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a b, an c and the d.", "b c and d"),
        ("anthem of theatre", "anthem of theatre"),
        ("U.S.A.", "usa"),
        ("t.h.e", ""),  # punctuation goes first, and leaves an article
        ("the–end", "–end"),  # a dash of Unicode is no punctuation here, but ends a word
        ("A\u00a0B", "b"),
        ("", ""),
    ],
)
def test_normalisation_by_hand(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "version_2", "expected"),
    [
        ("the cat sat", ["A cat sat.", "dog"], False, (1, 1)),
        ("cat sat down", ["cat sat", "the cat"], False, (0, 0.8)),
        ("cat cat", ["cat"], False, (0, 2 / 3)),  # a word counts as often as both sides have it
        ("bird", ["cat"], False, (0, 0)),
        ("", ["cat"], False, (0, 0)),
        ("the", ["a"], False, (1, 0)),  # the script of 1.1 finds no common word
        (".", ["interventionism", "."], False, (1, 0)),
        (".", ["interventionism", "."], True, (0, 0)),  # that of 2.0 drops an answer without words
        ("", [], True, (1, 1)),
        ("the.", [], True, (1, 1)),
        ("cat", [], True, (0, 0)),
        ("", ["the"], True, (1, 1)),
        ("", ["cat"], True, (0, 0)),
    ],
)
def test_scores_by_hand(prediction, answers, version_2, expected):
    assert score(prediction, answers, version_2=version_2) == pytest.approx(expected)


texts = st.lists(st.sampled_from(["the", "cat", "Cat.", "sat", "on", "mat", ""]), max_size=5).map(" ".join)


@settings(max_examples=100)
@given(texts, st.lists(texts, min_size=1, max_size=4), st.booleans())
def test_laws_of_scores(prediction, answers, version_2):
    found = score(prediction, answers, version_2=version_2)
    assert 0 <= found.f1 <= 1 and found.exact_match in (0, 1)
    assert found.f1 >= found.exact_match or not normalise(prediction)
    assert score(prediction, answers[::-1], version_2=version_2) == found
    assert score(normalise(prediction), answers, version_2=version_2) == found
    alone = score(prediction, answers[:1], version_2=version_2)
    assert score(answers[0], [prediction], version_2=version_2) == alone or not (prediction and answers[0])
    assert version_2 or alone.f1 <= found.f1


def test_means_do_not_depend_on_the_order():
    predictions, answers = random_answers(TEXTS, 13, True)
    order = random.Random(1).sample(range(1000), 1000)
    shuffled = squad_metrics([predictions[i] for i in order], [answers[i] for i in order], version_2=True)
    assert shuffled == squad_metrics(predictions, answers, version_2=True)


def test_splits_that_have_no_question_are_left_out():
    assert set(squad_metrics(["x"], [["x"]], version_2=True)) == {
        *("exact_match", "f1", "has_answer_exact_match", "has_answer_f1")
    }
    assert squad_metrics(["x", ""], [[], []], version_2=True) == {
        **{"exact_match": 0.5, "f1": 0.5, "no_answer_exact_match": 0.5, "no_answer_f1": 0.5}
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squad_metrics(["x"], [["x"], ["y"]]), "1 predictions for 2 questions"),
        (lambda: squad_metrics([], []), "at least one"),
        (lambda: squad_metrics(["x"], [[]]), "version_2=True"),
        (lambda: best_threshold([1.0], [1.0, 0.0], [0.0]), "at least one"),
        (lambda: best_threshold([], [], []), "at least one"),
        (lambda: best_threshold([math.nan, 1.0], [1.0, 0.0], [0.0, 1.0]), "not finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@st.composite
def questions(draw):
    """No-answer scores with ties, and values in eighths, whose sums are exact; without a span both values are one."""
    rows = st.tuples(st.integers(-4, 4) | st.just(math.inf), st.integers(0, 8), st.booleans())
    scores, eighths, answerable = map(np.array, zip(*draw(st.lists(rows, min_size=1, max_size=25)), strict=True))
    unanswered = (~answerable).astype(float)
    return scores.astype(float), np.where(np.isinf(scores), unanswered, answerable * eighths / 8), unanswered


@settings(max_examples=200)
@given(questions(), st.randoms(use_true_random=False))
def test_threshold_is_the_middle_of_the_first_that_are_best(case, random):
    scores, answered, unanswered = case
    worth = {t: np.where(scores > t, unanswered, answered).sum() for t in sorted({-math.inf, *scores})}
    first = next(t for t, value in worth.items() if value == max(worth.values()))
    ends = [t for t, value in worth.items() if t > first and value != worth[first]]
    middle = (first + ends[0]) / 2 if ends else math.inf
    assert best_threshold(*case) == (-math.inf if first == -math.inf else middle)
    order = random.sample(range(len(scores)), len(scores))
    assert best_threshold(*(column[order] for column in case)) == best_threshold(*case)


def test_threshold_is_in_the_range_that_the_official_sweep_finds():
    """The sweep of the script of 2.0, question by question, where no two scores are equal."""
    draw = np.random.default_rng(4)
    scores, f1 = draw.normal(size=400), draw.integers(0, 9, size=400) / 8
    answerable = scores + draw.normal(size=400) < 0.3
    best = current = float((~answerable).sum())
    lower = -math.inf
    for question in sorted(range(400), key=lambda question: scores[question]):
        current += f1[question] if answerable[question] else -1.0
        if current > best:
            best, lower = current, scores[question]
    assert -1 < lower < 1
    upper = scores[~answerable & (scores > lower)].min()
    found = best_threshold(scores, np.where(answerable, f1, 0.0), (~answerable).astype(float))
    assert found == (lower + upper) / 2


def test_threshold_stays_best_where_scores_are_rounded_anew():
    scores = np.array([0.3, 0.1, 0.2, 0.2, 0.9, 0.4])
    case = np.array([1, 1, 1, 1, 0, 0.5]), np.array([0, 0, 0, 0, 1, 0])
    found = best_threshold(scores, *case)
    for rounding in (-1e-7, 1e-7):
        assert ((scores + rounding <= found) == (scores < 0.9)).all()
