"""What report pages say of answers: numbers against scikit-learn and counting by hand, and the order of errors."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.metrics import classification_report, confusion_matrix

from finetune.report.confusion import CONFUSIONS, FIGURE_LABELS, LISTED, TABLE_LABELS
from finetune.report.page import WORST, Picture, clipped, quantile_bins, value_text
from finetune.tasks.classification.page import Item, multi_label, regression, single_label
from finetune.tasks.qa import page as qa
from finetune.tasks.qa.metrics import Score, score
from finetune.tasks.qa.questions import Answer, Question
from finetune.tasks.tokens import page as tokens
from finetune.tasks.tokens.metrics import entity_metrics


def section(sections, title):
    [found] = [one for one in sections if one.title == title]
    return found


def tables(found):
    """Return the rows of each table of a section, without the line below the header."""
    texts = [part for part in found.parts if isinstance(part, str) and part.startswith("|")]
    return [[line.strip("| ").split(" | ") for n, line in enumerate(text.splitlines()) if n != 1] for text in texts]


def draw(sections, folder):
    """Draw all pictures, and return how many there are."""
    pictures = [part for one in sections for part in one.parts if isinstance(part, Picture)]
    assert len({picture.name for picture in pictures}) == len(pictures)
    for picture in pictures:
        picture.draw(folder / f"{picture.name}.png")
        assert imread(folder / f"{picture.name}.png").std() > 0.01
    return len(pictures)


def items(number):
    return [Item([f"text {place}"], f"data.tsv:{place + 2}") for place in range(number)]


def labelled(number, labels, seed=3):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(number, labels))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return shares, draw.integers(0, labels, number)


@given(values=st.lists(st.integers(0, 40), min_size=1, max_size=80), at_most=st.integers(1, 8))
def test_bins_part_values_in_order_and_equal_ones_share_a_bin(values, at_most):
    values = np.array(values)
    bins = quantile_bins(values, at_most)
    assert 1 <= len(bins) <= at_most
    assert sorted(np.concatenate([each.members for each in bins])) == list(range(len(values)))
    for each in bins:
        assert (values[each.members].min(), values[each.members].max()) == (each.low, each.high)
    assert all(one.high < following.low for one, following in pairwise(bins))


def test_bins_of_different_values_are_of_about_one_size():
    sizes = [len(each.members) for each in quantile_bins(np.random.default_rng(1).permutation(103), at_most=5)]
    assert len(sizes) == 5 and max(sizes) - min(sizes) <= 1
    assert quantile_bins(np.array([], dtype=np.int64)) == []


def test_texts_are_cut_with_an_ellipsis_and_stay_on_one_line():
    assert clipped("a\nb  c", 5) == "a b c"
    assert clipped("abcdefg", 5) == "abcd…" and clipped("abc defg", 5) == "abc…"


def test_values_are_short_whatever_they_are():
    values = [0.12345, -3.0, float("nan"), sys.float_info.max, -sys.float_info.max, float("inf")]
    assert [value_text(value) for value in values] == ["0.1235", "-3.0000", "nan", "∞", "-∞", "∞"]


@pytest.mark.parametrize("labels", [2, 3, TABLE_LABELS + 1, FIGURE_LABELS + 1, LISTED + 1])
def test_one_label(tmp_path, labels):
    shares, gold = labelled(211, labels)
    names = [f"label|{number}" for number in range(labels)]
    found = single_label(items(211), shares, gold, names)
    predicted = shares.argmax(1)
    counts = confusion_matrix(gold, predicted, labels=range(labels))
    [first] = tables(section(found, "What is taken for what"))
    shown = [f"label&#124;{number}" for number in range(labels)]
    if labels <= TABLE_LABELS:
        assert first == [shown, *([name, *map(str, row)] for name, row in zip(shown, counts.tolist(), strict=True))]
    else:
        wrong = [(counts[a, b], a, b) for a in range(labels) for b in range(labels) if a != b and counts[a, b]]
        most = sorted(wrong, key=lambda one: (-one[0], *one[1:]))[:CONFUSIONS]
        assert first[1:] == [[shown[a], shown[b], str(times), str(counts[a].sum())] for times, a, b in most]
    assert draw(found, tmp_path) == (labels <= FIGURE_LABELS)
    report = classification_report(gold, predicted, labels=range(labels), output_dict=True, zero_division=0)
    rows = tables(section(found, "Labels"))[0][1:]
    for name, *values in rows:
        theirs = report[name.removeprefix("label&#124;")]
        assert values[:3] == [f"{theirs[key]:.3f}" for key in ("precision", "recall", "f1-score")]
        assert values[3] == str(int(theirs["support"]))
    assert len(rows) == min(labels, LISTED)
    errors = tables(section(found, "Worst errors"))[0][1:]
    at = [int(row[-2].removeprefix("text ")) for row in errors]
    confidence = shares.max(1)
    assert len(at) == WORST and all(predicted[place] != gold[place] for place in at)
    assert min(confidence[at]) >= max(
        confidence[place] for place in range(211) if predicted[place] != gold[place] and place not in at
    )
    assert errors[0][:4] == [
        f"{confidence[at[0]]:.3f}",
        shown[predicted[at[0]]],
        shown[gold[at[0]]],
        f"{shares[at[0], gold[at[0]]]:.3f}",
    ]
    assert errors[0][-1] == f"data.tsv:{at[0] + 2}"


def test_no_error_is_said():
    shares, _ = labelled(9, 3)
    found = single_label(items(9), shares, shares.argmax(1), ["a", "b", "c"])
    assert section(found, "Worst errors").parts == ["There is none."]


@pytest.mark.parametrize("labels", [1, 5])
def test_several_labels(labels):
    draw = np.random.default_rng(5)
    shares, gold = draw.random((83, labels)), draw.integers(0, 2, (83, labels))
    names = [*"abcde"][:labels]
    found = multi_label(items(83), shares, gold, names)
    report = classification_report(gold, shares > 0.5, output_dict=True, zero_division=0, target_names=None)
    if labels == 1:  # scikit-learn takes a single column for classes 0 and 1
        report = {"0": report["1"]}
    for number, (name, *values) in enumerate(tables(section(found, "Labels"))[0][1:]):
        theirs = report[str(number)]
        assert name == names[number] and values[3] == str(int(theirs["support"]))
        assert values[:3] == [f"{theirs[key]:.3f}" for key in ("precision", "recall", "f1-score")]
    most = max(
        (abs(shares[place, label] - 0.5), -place, label)
        for place in range(83)
        for label in range(labels)
        if (shares[place, label] > 0.5) != gold[place, label]
    )
    place, label = -most[1], most[2]
    first = tables(section(found, "Worst errors"))[0][1]
    sets = [
        ", ".join(name for name, has in zip(names, row, strict=True) if has) or "*none*"
        for row in (shares[place] > 0.5, gold[place])
    ]
    assert first == [f"{0.5 + most[0]:.3f}", names[label], *sets, f"text {place}", f"data.tsv:{place + 2}"]


def test_numbers(tmp_path):
    predicted, targets = np.array([1.0, 2.0, 5.0, 0.5], np.float32), np.array([1.0, 4.5, 4.0, 0.25], np.float32)
    pairs = [Item([f"left {place}", f"right {place}"], f"data.tsv:{place}") for place in range(4)]
    found = regression(pairs, predicted, targets)
    rows = tables(section(found, "Worst errors"))[0]
    assert rows[0] == ["predicted", "in the data", "difference", "text", "second text", "where"]
    assert [row[-3] for row in rows[1:]] == ["left 1", "left 2", "left 3", "left 0"]
    assert rows[1] == ["2", "4.5", "-2.5", "left 1", "right 1", "data.tsv:1"]
    assert (
        "The mean absolute difference is 0.9375, the median 0.625." in section(found, "Predictions and targets").parts
    )
    assert draw(found, tmp_path) == 1


CONTEXT = "The cat <sat> on the mat, and the dog | slept under the *old* table. " * 3


def answered(number, *, unanswerable):
    """Return questions with lengths and answers of all kinds."""
    draw = np.random.default_rng(number)
    found = []
    for place in range(number):
        start = int(draw.integers(0, 60))
        end = start + int(draw.integers(1, 30))
        text = CONTEXT[start:end].strip()
        golds = () if unanswerable and place % 3 == 0 else (Answer(text, CONTEXT.index(text)),)
        begin = int(draw.integers(0, 60))
        span = None if unanswerable and place % 4 == 0 else (begin, begin + 9)
        question = Question(id=f"q{place}", text=f"what | is {place}?", context=CONTEXT, answers=golds)
        said = CONTEXT[slice(*span)] if span else ""
        found.append(
            qa.Answered(
                question=question,
                context_tokens=int(draw.integers(10, 400)),
                span=span,
                score=float(draw.normal()),
                probability=float(draw.random()),
                worth=score(said, [answer.text for answer in golds], version_2=unanswerable),
                no_answer_score=float(draw.normal()) if unanswerable and place % 5 else None,
            )
        )
    return found


def by_hand(questions):
    number = len(questions)
    return [f"{sum(getattr(one.worth, key) for one in questions) / number:.3f}" for key in ("exact_match", "f1")]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers(tmp_path, unanswerable):
    questions = answered(97, unanswerable=unanswerable)
    found = qa.sections(questions, 0.25 if unanswerable else None)
    contexts, answers = tables(section(found, "By length"))
    with_answer = [one for one in questions if one.question.answers]
    for rows, among, length in (
        (contexts, questions, lambda one: one.context_tokens),
        (answers, with_answer, lambda one: len(one.question.answers[0].text.split())),
    ):
        for name, number, *values in rows[1:]:
            low, _, high = name.partition("–")
            own = [one for one in among if int(low) <= length(one) <= int(high or low)]
            assert (int(number), values) == (len(own), by_hand(own))
        assert sum(int(row[1]) for row in rows[1:]) == len(among)
    if unanswerable:
        kinds = tables(section(found, "Questions without an answer"))[0][1:]
        for (name, number, none, *values), own in zip(
            kinds, (with_answer, [one for one in questions if not one.question.answers]), strict=True
        ):
            assert name.startswith("with") and (int(number), values) == (len(own), by_hand(own))
            assert int(none) == sum(one.span is None for one in own)
    assert draw(found, tmp_path) == (3 if unanswerable else 1)


def test_the_worst_answers_come_first_and_are_shown_in_their_contexts():
    context = "x" * 200 + ' <b>"Anna"</b> met Otto | Kern. ' + "y" * 200
    gold, said = context.index("Otto | Kern"), context.index('"Anna"')

    def one(name, f1, probability, span, golds=True):
        answers = (Answer("Otto | Kern", gold), Answer("Otto", gold)) if golds else ()
        question = Question(id=name, text="Who?", context=context, answers=answers)
        return qa.Answered(question, 9, span, 1.5, probability, Score(0.0, f1), None)

    shown = [
        one("half", 0.5, 0.99, (gold, gold + 6)),
        one("unsure", 0.0, 0.2, (said, said + 6)),
        one("sure", 0.0, 0.9, (said, said + 6)),
        one("nothing", 0.0, 0.1, None),
        one("something", 0.0, 0.05, (said, said + 6), golds=False),
    ]
    right = shown[0]._replace(worth=Score(1.0, 1.0))
    told, errors = section(qa.sections([right, *shown], 0.0), "Worst errors").parts
    assert told.startswith("5 of 6 answers")
    blocks = errors.split("\n\n")
    assert [block.split("(")[1].split(")")[0] for block in blocks] == ["sure", "unsure", "nothing", "something", "half"]
    lines = blocks[0].splitlines()
    assert lines[0] == "1. Who? (sure)"
    assert "predicted (F1 0.00, probability 0.900, score 1.50): …xxx" in lines[1]
    assert '&lt;b&gt;<b>"Anna"</b>&lt;/b&gt; met Otto &#124; Kern.' in lines[1] and lines[1].endswith("yyy…")
    assert "<b>Otto &#124; Kern</b>. y" in lines[2] and lines[3].strip() == "- or: Otto"
    assert "*no answer*" in blocks[2].splitlines()[1] and "in the data: *no answer*" in blocks[3]


def test_a_short_context_is_shown_whole():
    question = Question(id="a", text="Who?", context="It was Anna.", answers=(Answer("It", 0),))
    one = qa.Answered(question, 4, (7, 11), 1.5, 0.5, Score(0.0, 0.0), None)
    lines = section(qa.sections([one], None), "Worst errors").parts[1].splitlines()
    assert [line.split(": ", 1)[1] for line in lines[1:]] == ["It was <b>Anna</b>.", "<b>It</b> was Anna."]


SENTENCES = [
    ("Anna Lee met Otto in Rome", "B-PER I-PER O B-PER O B-LOC", "B-PER I-PER O B-LOC O B-LOC"),
    ("Rome is big", "B-LOC O O", "O O O"),
    ("New York City and I", "B-LOC I-LOC I-LOC O O", "B-LOC I-LOC O O B-PER"),
    ("nothing here", "O O", "O O"),
    ("well", "O", "B-ORG"),
]


def tagged(rows=SENTENCES):
    return [tokens.Tagged(*(text.split() for text in row), f"data.conll:{n}") for n, row in enumerate(rows)]


def test_entities(tmp_path):
    measured = entity_metrics([one.predicted for one in tagged()], [one.tags for one in tagged()])
    found = tokens.of_entities(tagged(), measured)
    assert tables(section(found, "Types"))[0][1:] == [
        ["LOC", "0.333", "0.333", "0.333", "3", "3"],
        ["ORG", "0.000", "0.000", "0.000", "0", "1"],
        ["PER", "0.500", "0.500", "0.500", "2", "2"],
    ]
    assert tables(section(found, "What is taken for what"))[0] == [
        ["LOC", "ORG", "PER", "other words", "missed"],
        ["LOC", "1", "0", "0", "1", "1"],
        ["ORG", "0", "0", "0", "0", "0"],
        ["PER", "1", "0", "1", "0", "0"],
        ["no entity", "0", "1", "1", "0", "0"],
    ]
    lengths = tables(section(found, "By length"))[0][1:]
    assert lengths == [
        ["1", "1", "0.000"],
        ["2", "1", "–"],
        ["3", "1", "0.000"],
        ["5", "1", "0.000"],
        ["6", "1", f"{2 * 2 / (3 + 3):.3f}"],
    ]
    told, errors = section(found, "Worst sentences").parts
    assert told.startswith("4 of 5 sentences have entities that are missed, or should not be there: 7 in all.")
    blocks = errors.split("\n\n")
    assert blocks[0].splitlines() == [
        "1. data.conll:2, 3 errors",
        "    - in the data: <b>New York City</b> (LOC) and I",
        "    - predicted: <b>New York</b> (LOC) City and <b>I</b> (PER)",
    ]
    assert [block.split(",")[0] for block in blocks[1:]] == ["2. data.conll:0", "3. data.conll:1", "4. data.conll:4"]
    assert draw(found, tmp_path) == 2


def test_no_entities_at_all_are_said():
    [found] = tokens.of_entities(tagged([("a b", "O O", "O O")]), {})
    assert found.parts == ["There is no entity, neither in the data nor predicted."]


def test_a_long_sentence_is_shown_from_shortly_before_its_first_error():
    words = [f"w{place}" for place in range(200)]
    one = tokens.Tagged(words, ["O"] * 200, ["O"] * 100 + ["B-X"] + ["O"] * 99, "data.conll:1")
    found = tokens.of_entities([one], {f"{name}/X": 0.0 for name in ("f1", "precision", "recall")})
    line = section(found, "Worst sentences").parts[1].splitlines()[2]
    assert line == f"    - predicted: … {' '.join(words[88:100])} <b>w100</b> (X) {' '.join(words[101:148])} …"


def test_tags_that_mark_no_entities(tmp_path):
    rows = [("a b c", "X Y X", "X X O"), ("d", "Y", "Y"), ("*e* f", "X X", "Y Y")]
    found = tokens.of_labels(tagged(rows), ["X", "Y"])  # O: that of a word without a token
    assert tables(section(found, "What is taken for what"))[0][1:] == [
        ["X", "1", "2", "1"],
        ["Y", "1", "1", "0"],
        ["O", "0", "0", "0"],
    ]
    assert tables(section(found, "Labels"))[0][1] == ["X", "0.500", "0.250", "0.333", "4"]
    assert tables(section(found, "By length"))[0][1:] == [["1", "1", "1.000"], ["2", "1", "0.000"], ["3", "1", "0.333"]]
    first = section(found, "Worst sentences").parts[1].splitlines()
    assert first[:3] == [
        "1. data.conll:0, 2 errors",
        "    - in the data: a/<b>X</b> b/<b>Y</b> c/<b>X</b>",
        "    - predicted: a/<b>X</b> b/<b>X</b> c/<b>O</b>",
    ]
    assert draw(found, tmp_path) == 2
