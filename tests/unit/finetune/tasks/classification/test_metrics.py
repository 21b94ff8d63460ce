"""Metrics against formulas written out in float64, and the laws that hold for any predictions."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.tasks.classification.metrics import (
    classification_metrics,
    multi_label_metrics,
    regression_metrics,
)
from pretrain.tracking import no_value

numbers = st.floats(-1e3, 1e3).map(lambda number: round(number, 3))
few_examples = settings(max_examples=40)


@pytest.fixture(autouse=True)
def no_warnings():
    """No metric may warn its user, whatever it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def written_out(predicted, labels, num_labels):
    """All values of a classification from its table of counts [label, predicted]."""
    table = np.zeros((num_labels, num_labels))
    for guess, label in zip(predicted, labels, strict=True):
        table[label, guess] += 1
    total, right = table.sum(), np.trace(table)
    present = table.sum(0) + table.sum(1) > 0
    per_label = np.diag(table)[present] / ((table.sum(0) + table.sum(1))[present] / 2)
    # Gorodkin 2004: the correlation of the one-hot labels with the one-hot predictions.
    together = right * total - table.sum(0) @ table.sum(1)
    spreads = [total**2 - np.square(table.sum(axis)).sum() for axis in (0, 1)]
    values = {
        "accuracy": right / total,
        "f1_macro": per_label.mean(),
        "f1_micro": right / total,
        "matthews": together / math.sqrt(math.prod(spreads)) if all(spreads) else 0.0,
    }
    if not spreads[1]:  # the data have one label
        values["matthews"] = math.nan
    if num_labels == 2:
        hits, others = table[1, 1], table[0, 1] + table[1, 0]
        values["f1"] = 2 * hits / (2 * hits + others) if table[1].any() else math.nan
    return values


@st.composite
def classified(draw):
    num_labels = draw(st.integers(2, 5))
    label = st.integers(0, num_labels - 1)
    pairs = draw(st.lists(st.tuples(label, label), min_size=1, max_size=30))
    return *map(list, zip(*pairs, strict=True)), num_labels


@few_examples
@given(classified())
def test_classification_as_written_out(case):
    assert classification_metrics(*case) == pytest.approx(written_out(*case), abs=1e-12, nan_ok=True)


@few_examples
@given(classified(), st.randoms(use_true_random=False))
def test_classification_laws(case, random):
    predicted, labels, num_labels = case
    values = classification_metrics(*case)
    defined = {name: value for name, value in values.items() if not math.isnan(value)}
    assert all(-1 <= value <= 1 if name == "matthews" else 0 <= value <= 1 for name, value in defined.items())
    swapped = classification_metrics(labels, predicted, num_labels)
    both = [name for name in defined if not math.isnan(swapped[name])]
    assert [swapped[name] for name in both] == pytest.approx([values[name] for name in both], abs=1e-12)
    order = random.sample(range(len(labels)), len(labels))
    shuffled = classification_metrics(np.array(predicted)[order], np.array(labels)[order], num_labels)
    assert shuffled == pytest.approx(values, rel=0, abs=0, nan_ok=True)
    names = random.sample(range(num_labels), num_labels)
    renamed = classification_metrics(np.array(names)[predicted], np.array(names)[labels], num_labels)
    for name in values.keys() - {"f1"}:  # only `f1` knows which label is the positive one
        assert renamed[name] == pytest.approx(values[name], abs=1e-12, nan_ok=True)


def test_classification_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 2 true negatives.
    values = classification_metrics([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0], 2)
    assert values == pytest.approx(
        {
            "accuracy": 5 / 8,
            "f1": 6 / 9,
            "f1_macro": (6 / 9 + 4 / 7) / 2,
            "f1_micro": 5 / 8,
            "matthews": (3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4),
        }
    )


@pytest.mark.parametrize(
    ("predicted", "labels", "num_labels", "expected"),
    [
        ([0, 0], [0, 0], 2, {"accuracy": 1, "f1": math.nan, "f1_macro": 1, "f1_micro": 1, "matthews": math.nan}),
        ([0, 1], [1, 1], 2, {"accuracy": 0.5, "f1": 2 / 3, "f1_macro": 1 / 3, "f1_micro": 0.5, "matthews": math.nan}),
        ([1, 1], [0, 1], 2, {"accuracy": 0.5, "f1": 2 / 3, "f1_macro": 1 / 3, "f1_micro": 0.5, "matthews": 0}),
        # Labels 0 and 3 occur nowhere: the mean is over labels 1 and 2.
        ([1, 2, 2], [1, 2, 1], 4, {"accuracy": 2 / 3, "f1_macro": 2 / 3, "f1_micro": 2 / 3, "matthews": 0.5}),
    ],
)
def test_classification_where_a_value_is_undefined(predicted, labels, num_labels, expected):
    assert classification_metrics(predicted, labels, num_labels) == pytest.approx(expected, nan_ok=True)


@st.composite
def marked(draw):
    examples, labels = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    row = st.lists(st.booleans(), min_size=labels, max_size=labels)
    return tuple(np.array(draw(st.lists(row, min_size=examples, max_size=examples))) for _ in range(2))


@few_examples
@given(marked())
def test_multi_label_as_written_out(case):
    predicted, labels = (side.astype(np.float64) for side in case)
    hits, marks, some = (predicted * labels).sum(0), predicted.sum(0) + labels.sum(0), labels.any()
    assert multi_label_metrics(*case) == pytest.approx(
        {
            "accuracy": np.mean([list(p) == list(q) for p, q in zip(predicted, labels, strict=True)]),
            "f1_macro": np.mean([2 * hit / mark if mark else 0 for hit, mark in zip(hits, marks, strict=True)])
            if some
            else math.nan,
            "f1_micro": 2 * hits.sum() / marks.sum() if some else math.nan,
        },
        abs=1e-12,
        nan_ok=True,
    )
    if some and predicted.any():
        assert multi_label_metrics(*reversed(case)) == pytest.approx(multi_label_metrics(*case), abs=1e-12)


def ranks(values):
    """Mean rank of each value among all, by counting."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def correlation(first, second):
    first, second = (np.array(side, np.float64) - np.mean(side) for side in (first, second))
    return (first @ second) / math.sqrt((first @ first) * (second @ second))


@few_examples
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
def test_regression_as_written_out(pairs):
    predicted, targets = zip(*pairs, strict=True)
    constant = len(set(predicted)) == 1 or len(set(targets)) == 1
    expected = {
        "pearson": math.nan if constant else correlation(predicted, targets),
        "spearman": math.nan if constant else correlation(ranks(predicted), ranks(targets)),
        "mse": sum((p - t) ** 2 for p, t in pairs) / len(pairs),
    }
    values = regression_metrics(predicted, targets)
    assert values == pytest.approx(expected, abs=1e-9, rel=1e-9, nan_ok=True)
    assert constant or max(abs(values["pearson"]), abs(values["spearman"])) <= 1 + 1e-12
    backwards = regression_metrics(targets[::-1], predicted[::-1])
    assert backwards == pytest.approx(values, abs=1e-9, rel=1e-9, nan_ok=True)


def test_regression_scales_and_ranks():
    targets = np.array([0.0, 1.0, 2.5, 4.0, 4.5])
    assert regression_metrics(3 * targets - 7, targets)["pearson"] == pytest.approx(1)
    values = regression_metrics(-np.exp(targets), targets)
    assert values["spearman"] == pytest.approx(-1)
    assert values["pearson"] > -0.95


def test_regression_is_in_float64():
    """Around 100,000 the differences of float32 predictions would drown in rounding."""
    predicted = np.array([100_000.125, 100_000.25, 100_000.5], np.float32)
    assert regression_metrics(predicted, [1.0, 2.0, 4.0])["pearson"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "targets", "mse"),
    [([2.0], [1.0], 1.0), ([1, 1, 1], [1, 2, 3], 5 / 3), ([math.nan, 1], [1, 2], math.nan)],
)
def test_undefined_correlations_are_nan(predicted, targets, mse):
    values = regression_metrics(predicted, targets)
    assert math.isnan(values["pearson"]) and math.isnan(values["spearman"])
    assert values["mse"] == pytest.approx(mse, nan_ok=True)


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (lambda: regression_metrics([1, 2], [3, 3]), "pearson, spearman: no value: all targets are equal"),
        (lambda: regression_metrics([1, 1], [2, 3]), "pearson, spearman: no value: all predictions are equal"),
        (lambda: regression_metrics([1], [2]), "pearson, spearman: no value: there is one example"),
        (lambda: regression_metrics([math.nan, 1], [2, 3]), "pearson, spearman: no value: numbers are not finite"),
        (lambda: classification_metrics([0, 1], [1, 1], 2), "matthews: no value: all examples have the same label"),
        (lambda: classification_metrics([0, 1], [0, 0], 2), "f1: no value: no example has the second label"),
        (lambda: multi_label_metrics([[0, 1]], [[0, 0]]), "f1_macro, f1_micro: no value: no example has a label"),
    ],
)
def test_what_has_no_value_is_said_once_with_the_reason(measure, told, caplog):
    no_value._say.cache_clear()
    measure()
    measure()
    assert caplog.text.count(told) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification_metrics([0, 2], [0, 1], 2), "from 0 to 2: with 2 labels they are 0 to 1"),
        (lambda: classification_metrics([0, 1], [-100, 1], 2), "from -100 to 1"),
        (lambda: classification_metrics([], [], 2), "not empty"),
        (lambda: classification_metrics([0], [0, 1], 2), r"shapes \(1,\) .* and \(2,\)"),
        (lambda: multi_label_metrics([0, 1], [0, 1]), r"\[examples, labels\]"),
        (lambda: multi_label_metrics([[0.7, 0.2]], [[1, 0]]), "compare probabilities to a threshold"),
        (lambda: regression_metrics([[1.0]], [[1.0]]), r"\[examples\]"),
    ],
)
def test_what_is_no_pair_of_predictions_and_labels_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_libraries_are_imported_when_they_are_needed():
    modules = ", ".join(f"finetune.tasks.{task}.metrics" for task in ("classification", "seq2seq", "tokens"))
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "finetune.tasks.classification.metrics" in loaded
    assert not {"sklearn", "scipy", "seqeval", "pandas", "sacrebleu", "rouge_score"} & set(loaded)
