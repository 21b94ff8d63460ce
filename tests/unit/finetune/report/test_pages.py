"""What report pages say of answers: numbers against scikit-learn, seqeval and counts by hand."""

import sys
from itertools import chain

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix

from finetune.report.confusion import MATRIX_LABELS, MOST_CONFUSIONS
from finetune.report.mistakes import MOST, metric
from finetune.tasks.classification import page as classification
from finetune.tasks.classification.labels import LabelledText
from finetune.tasks.qa.page import answer_sections
from finetune.tasks.qa.questions import Answer, Question
from finetune.tasks.tokens.metrics import entity_metrics
from finetune.tasks.tokens.page import tag_sections
from finetune.tasks.tokens.sentences import Sentence
from pretrain.report.page import Matrix, Style, Styled, Table, plain, shortened


def section(sections, title):
    [found] = [one for one in sections if one.title == title]
    return found


def rows(sections, title):
    """Return the rows of the table of a section, as texts."""
    tables = [block for block in section(sections, title).blocks if isinstance(block, Table)]
    return [[plain(cell) for cell in row] for table in tables for row in table.rows]


def said(sections, title):
    """Return the sentences of a section."""
    return " ".join(block for block in section(sections, title).blocks if isinstance(block, str))


def matrix(sections):
    """Return the confusion matrix, None if there is none."""
    found = [block for block in section(sections, "Confusion matrix").blocks if isinstance(block, Matrix)]
    return found[0] if found else None


def marked(row):
    """Return the texts that are set off in a row."""
    pieces = [piece for cell in row if isinstance(cell, tuple) for piece in cell]
    return [piece.text for piece in pieces if piece in [Styled(plain(piece), Style.marked)]]


def texts(labels):
    return [LabelledText(f"text {place}", None, label, f"data.tsv:{place + 2}") for place, label in enumerate(labels)]


def shares(*logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def by_scikit_learn(report, name):
    theirs = report[name]
    return [*(f"{theirs[key]:.3f}" for key in ("precision", "recall", "f1-score")), str(int(theirs["support"]))]


def test_texts_are_cut_with_an_ellipsis_and_stay_on_one_line():
    assert shortened("a\nb  c", 5) == "a b c"
    assert shortened("abcdefg", 5) == "abcd…" and shortened("abc defg", 5) == "abc…"


def test_values_are_short_whatever_they_are():
    values = [0.12345, -3.0, float("nan"), sys.float_info.max, -sys.float_info.max, float("inf")]
    assert [plain(metric(value)) for value in values] == ["0.1235", "-3.0000", "nan", "inf", "-inf", "inf"]


@pytest.mark.parametrize("labels", [2, 3, MATRIX_LABELS + 1, 300])
def test_one_label(labels):
    names = [f"label|{number}" for number in range(labels)]
    draw = np.random.default_rng(3)
    probabilities, gold = shares(*draw.normal(size=(511, labels))), draw.integers(0, labels, 511)
    guess = probabilities.argmax(1)
    predictions = [
        {"label": names[best], "score": row[best], "probabilities": dict(zip(names, row, strict=True))}
        for best, row in zip(guess, probabilities, strict=True)
    ]
    found = classification.single_label(texts([names[label] for label in gold]), predictions, names)
    report = classification_report(
        gold, guess, labels=range(labels), target_names=names, output_dict=True, zero_division=0
    )
    numbers = rows(found, "Labels")
    assert {name for name, *_ in numbers} == {names[label] for label in {*gold, *guess}}
    for name, *values, predicted in numbers:
        assert values == by_scikit_learn(report, name)
        assert predicted == str((guess == names.index(name)).sum())
    lowest = sorted(report[name]["f1-score"] for name, *_ in numbers)
    assert [row[3] for row in numbers] == [f"{value:.3f}" for value in lowest]
    counts = confusion_matrix(gold, guess, labels=range(labels))
    confusions = rows(found, "Confusion matrix")
    wrong = counts[~np.eye(labels, dtype=bool)]
    assert [int(row[2]) for row in confusions] == sorted(wrong[wrong > 0].tolist(), reverse=True)[:MOST_CONFUSIONS]
    for *pair, times, of in confusions:
        own, other = map(names.index, pair)
        assert own != other and (int(times), int(of)) == (counts[own, other], counts[own].sum())
    if labels > MATRIX_LABELS:
        assert matrix(found) is None and "labels are too many to draw" in said(found, "Confusion matrix")
    else:
        assert matrix(found).shares == pytest.approx(counts / counts.sum(1, keepdims=True))
    assert said(found, "Worst errors").startswith(f"{(gold != guess).sum()} of 511 answers differ")
    errors = rows(found, "Worst errors")
    most = sorted(np.flatnonzero(gold != guess), key=lambda place: -probabilities[place].max())[:MOST]
    for place, error in zip(most, errors, strict=True):
        shown = [names[label] for label in (guess[place], gold[place])]
        where = [f"text {place}", f"data.tsv:{place + 2}"]
        assert error == [f"{probabilities[place].max():.3f}", *shown, *where]


def test_no_error_is_said():
    found = classification.single_label(texts("abc"), [{"label": name, "score": 0.9} for name in "abc"], "abc")
    assert said(found, "Worst errors") == "0 of 3 answers differ from the data."
    assert said(found, "Confusion matrix") == "No label is taken for another."


@pytest.mark.parametrize("labels", [1, 5])
def test_several_labels(labels):
    draw = np.random.default_rng(5)
    probabilities, gold = draw.random((83, labels)), draw.integers(0, 2, (83, labels))
    names = [*"abcde"][:labels]

    def names_of(row):
        return tuple(name for name, has in zip(names, row, strict=True) if has)

    predictions = [
        {"labels": [*names_of(row > 0.5)], "probabilities": dict(zip(names, row, strict=True))} for row in probabilities
    ]
    found = classification.label_sets(texts([names_of(row) for row in gold]), predictions)
    report = classification_report(gold, probabilities > 0.5, output_dict=True, zero_division=0)
    if labels == 1:  # scikit-learn takes a single column for classes 0 and 1
        report = {"0": report["1"]}
    assert sorted(name for name, *_ in rows(found, "Labels")) == names
    for name, *values, _ in rows(found, "Labels"):
        assert values == by_scikit_learn(report, str(names.index(name)))
    wrong = np.where((probabilities > 0.5) != gold, abs(probabilities - 0.5), 0)
    place, label = np.unravel_index(wrong.argmax(), wrong.shape)
    sets = [", ".join(names_of(row)) or "none" for row in (probabilities[place] > 0.5, gold[place])]
    first = [f"{0.5 + wrong.max():.3f} for {names[label]}", *sets, f"text {place}", f"data.tsv:{place + 2}"]
    assert rows(found, "Worst errors")[0] == first
    assert f"{np.count_nonzero(wrong.max(1))} of 83 answers" in said(found, "Worst errors")


def test_numbers():
    targets, predicted = [1.0, 4.5, 4.0, 0.25], [1.0, 2.0, 5.0, 0.5]
    pairs = [LabelledText(f"left {n}", f"right {n}", target, f"data.tsv:{n}") for n, target in enumerate(targets)]
    errors = rows(classification.regression(pairs, [{"score": score} for score in predicted]), "Worst errors")
    assert [row[3] for row in errors] == [f"left {n} / right {n}" for n in (1, 2, 3, 0)]
    assert errors[0] == ["-2.5", "2", "4.5", "left 1 / right 1", "data.tsv:1"]


def test_the_worst_answers_come_first_and_are_shown_in_their_contexts():
    context = "x" * 200 + ' <b>"Anna"</b> met Otto | Kern. ' + "y" * 200
    gold, other = context.index("Otto | Kern"), context.index('"Anna"')
    spans = {"none": None, "half": (gold, gold + 4), "wrong": (other, other + 6), "right": (gold, gold + 11)}

    def case(name, span, probability, *, answerable=True):
        answers = (Answer("Otto | Kern", gold), Answer("Kern", gold + 7)) if answerable else ()
        start, end = spans[span] or (None, None)
        answer = context[start:end] if spans[span] else ""
        question = Question(id=name, text="Who?", context=context, answers=answers)
        return question, {"answer": answer, "start": start, "end": end, "probability": probability}

    cases = [
        case("right", "right", 0.99),
        case("half", "half", 0.98),
        case("unsure", "wrong", 0.2),
        case("sure", "wrong", 0.9),
        case("nothing", "none", 0.1),
        case("something", "wrong", 0.05, answerable=False),
        case("rightly nothing", "none", 0.05, answerable=False),
    ]
    found = answer_sections(*zip(*cases, strict=True), 0.25)
    assert said(found, "Worst errors").startswith("5 of 7 answers differ from the data.")
    errors = rows(found, "Worst errors")
    assert [row[-1] for row in errors] == ["sure", "unsure", "nothing", "something", "half"]
    scores, predicted, in_data, question, _ = errors[0]
    assert (scores, question) == ("0.00, 0.900", "Who?")
    assert predicted.startswith("…xxx") and predicted.endswith("yyy…")
    assert '<b>"Anna"</b> met Otto | Kern.' in predicted
    assert "Otto | Kern. y" in in_data and in_data.endswith("; or: Kern")
    [table] = [block for block in section(found, "Worst errors").blocks if isinstance(block, Table)]
    assert marked(table.rows[0]) == ['"Anna"', "Otto | Kern"]
    assert errors[2][1] == "no answer" and errors[3][2] == "no answer"
    assert errors[4][0] == "0.67, 0.980"  # one of the two words of an answer
    assert "by more than the threshold, 0.2500." in said(found, "Confusion matrix")
    assert matrix(found).shares.tolist() == [[4 / 5, 1 / 5], [1 / 2, 1 / 2]]
    confusions = [["answer", "no answer", "1", "5"], ["no answer", "answer", "1", "2"]]
    assert sorted(rows(found, "Confusion matrix")) == confusions


def test_a_short_context_is_shown_whole():
    question = Question(id="a", text="Who?", context="It was Anna.", answers=(Answer("It", 0),))
    found = answer_sections([question], [{"answer": "Anna", "start": 7, "end": 11, "probability": 0.5}], None)
    assert [one.title for one in found] == ["Worst errors"]
    assert rows(found, "Worst errors")[0][1:3] == ["It was Anna.", "It was Anna."]
    assert marked(section(found, "Worst errors").blocks[1].rows[0]) == ["Anna", "It"]


TAGGED = [
    ("Anna Lee met Otto in Rome", "B-PER I-PER O B-PER O B-LOC", "B-PER I-PER O B-LOC O B-LOC"),
    ("Rome is big", "B-LOC O O", "O O O"),
    ("New York City and I", "B-LOC I-LOC I-LOC O O", "B-LOC I-LOC O O B-PER"),
    ("nothing here", "O O", "O O"),
    ("well", "O", "B-ORG"),
]


def tagged(sentences=TAGGED):
    words, tags, predicted = ([text.split() for text in column] for column in zip(*sentences, strict=True))
    return [Sentence(*row, f"data.conll:{n}") for n, row in enumerate(zip(words, tags, strict=True))], predicted


def test_entities():
    sentences, predicted = tagged()
    found = tag_sections(sentences, predicted, ["O", "B-LOC", "I-LOC", "B-ORG", "B-PER", "I-PER"], entities=True)
    measured = entity_metrics(predicted, [sentence.tags for sentence in sentences])
    counts = {"LOC": ["3", "3"], "ORG": ["0", "1"], "PER": ["2", "2"]}
    assert [row[0] for row in rows(found, "Labels")] == ["ORG", "LOC", "PER"]
    for kind, *values in rows(found, "Labels"):
        theirs = [f"{measured[f'{name}/{kind}']:.3f}" for name in ("precision", "recall", "f1")]
        assert values == [*theirs, *counts[kind]]
    words = {("LOC", "O"): 2, ("PER", "LOC"): 1, ("O", "PER"): 1, ("O", "ORG"): 1}  # of the words, by hand
    support = {"LOC": "5", "PER": "3", "O": "9"}
    shown = {(own, guess): (times, of) for own, guess, times, of in rows(found, "Confusion matrix")}
    assert shown == {pair: (str(times), support[pair[0]]) for pair, times in words.items()}
    types = [
        [tag.partition("-")[2] or tag for tag in chain(*tags)]
        for tags in ([sentence.tags for sentence in sentences], predicted)
    ]
    expected = confusion_matrix(*types, labels=["O", "LOC", "ORG", "PER"])
    assert matrix(found).shares == pytest.approx(expected / np.maximum(expected.sum(1, keepdims=True), 1))
    assert said(found, "Worst errors").startswith("4 of 5 answers differ from the data.")
    assert rows(found, "Worst errors")[:2] == [
        ["2", "O B-PER", "I-LOC O", "New York City and I", "data.conll:2"],
        ["1", "B-LOC", "B-PER", "Anna Lee met Otto in Rome", "data.conll:0"],
    ]
    table = section(found, "Worst errors").blocks[1]
    assert [marked(row) for row in table.rows[:2]] == [["City", "I"], ["Otto"]]
    assert [row[-1] for row in rows(found, "Worst errors")[2:]] == ["data.conll:1", "data.conll:4"]


def test_no_entities_at_all():
    found = tag_sections(*tagged([("a b", "O O", "O O")]), ["O", "B-X"], entities=True)
    assert rows(found, "Labels") == rows(found, "Worst errors") == []


def test_a_long_sentence_is_shown_from_shortly_before_its_first_error():
    words = [f"w{place}" for place in range(200)]
    sentence, predicted = Sentence(words, ["O"] * 200, "f:1"), ["O"] * 100 + ["B-X"] + ["O"] * 98 + ["B-X"]
    [error] = rows(tag_sections([sentence], [predicted], ["O", "B-X"], entities=True), "Worst errors")
    shown = f"… {' '.join(words[88:148])} …"
    assert error == ["2", "B-X", "O", shown, "f:1"]


def test_tags_that_mark_no_entities():
    examples = [("a b c", "X-1 Y X-1", "X-1 X-1 O"), ("d", "Y", "Y"), ("*e* f", "X-1 X-1", "Y Y")]
    sentences, predicted = tagged(examples)
    found = tag_sections(sentences, predicted, ["X-1", "Y"], entities=False)  # O: of a word without a token
    report = classification_report(
        [*chain(*(sentence.tags for sentence in sentences))], [*chain(*predicted)], output_dict=True, zero_division=0
    )
    for name, *values, _ in rows(found, "Labels"):
        assert values == by_scikit_learn(report, name)
    confusions = [["X-1", "Y", "2", "4"], ["Y", "X-1", "1", "2"], ["X-1", "O", "1", "4"]]
    assert rows(found, "Confusion matrix") == confusions
    assert rows(found, "Worst errors")[1] == ["2", "Y Y", "X-1 X-1", "*e* f", "data.conll:2"]
