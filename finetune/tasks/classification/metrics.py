"""Metrics of classification and regression, computed by scikit-learn and scipy.

Metrics of answers and of entities are their tasks' own. Every value but the mean squared error is a share or a
correlation, not a percentage. The libraries are imported when the first value is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def classification_metrics(predicted: ArrayLike, labels: ArrayLike, num_labels: int) -> dict[str, float]:
    """Values of a task where every example has one label: `accuracy`, `f1_macro`, `f1_micro`, `matthews`.

    `predicted` and `labels` are label ids of shape [examples], from 0 to `num_labels` - 1. With two labels there is
    also `f1`: that of label 1, the positive one. Over all labels `f1_micro` equals the accuracy. Raises `ValueError`
    for shapes that differ, no examples or ids outside the range.
    """
    predicted, labels = _pair(predicted, labels, dimensions=1)
    low, high = min(predicted.min(), labels.min()), max(predicted.max(), labels.max())
    if low < 0 or high >= num_labels:
        raise ValueError(f"label ids from {low} to {high}: with {num_labels} labels they are 0 to {num_labels - 1}")
    values = {"accuracy": accuracy(predicted, labels)}
    if num_labels == 2:
        values["f1"] = f1(predicted, labels, "binary")
    values["f1_macro"] = f1(predicted, labels, "macro")
    values["f1_micro"] = f1(predicted, labels, "micro")
    values["matthews"] = matthews(predicted, labels)
    return values


def multi_label_metrics(predicted: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Values of a task where every example has any number of labels: `accuracy`, `f1_macro`, `f1_micro`.

    `predicted` and `labels` are zeros and ones (or booleans) of shape [examples, labels]. `accuracy` is the share of
    examples whose labels are all right. `f1_micro` counts all decisions together; `f1_macro` is the mean over labels,
    where a label that no example has and nothing predicts counts as 0.0. Raises `ValueError` for shapes that differ,
    no examples or other values.
    """
    predicted, labels = _pair(predicted, labels, dimensions=2)
    if not (np.isin(predicted, (0, 1)).all() and np.isin(labels, (0, 1)).all()):
        raise ValueError("multi-label predictions and labels are zeros and ones: compare probabilities to a threshold")
    predicted, labels = predicted.astype(int), labels.astype(int)
    return {
        "accuracy": float((predicted == labels).all(axis=1).mean()),
        "f1_macro": float(np.mean([f1(*columns, "binary") for columns in zip(predicted.T, labels.T, strict=True)])),
        "f1_micro": f1(predicted.ravel(), labels.ravel(), "binary"),
    }


def regression_metrics(predicted: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Values of a task with one number per example: `pearson`, `spearman`, `mse`.

    `predicted` and `targets` are numbers of shape [examples]; the arithmetic is in float64. A NaN on either side makes
    every value NaN. Raises `ValueError` for shapes that differ or no examples.
    """
    predicted, targets = _pair(predicted, targets, dimensions=1)
    return {
        "pearson": pearson(predicted, targets),
        "spearman": spearman(predicted, targets),
        "mse": mean_squared_error(predicted, targets),
    }


def accuracy(predicted: Array, labels: Array) -> float:
    """Share of examples whose predicted label id is right; both [examples]."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def f1(predicted: Array, labels: Array, average: Literal["binary", "macro", "micro"]) -> float:
    """F1 of label ids, both [examples]; a quotient by 0 counts as 0.0.

    `binary`: that of label 1 among the labels 0 and 1. `macro`: the mean over labels; as in scikit-learn, a label that
    occurs on neither side is left out. `micro`: of the counts of all labels together.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average=average, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews correlation of label ids, both [examples], for two labels or more (Gorodkin 2004).

    0.0 where either side has a single label.
    """
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: Array, targets: Array) -> float:
    """Pearson correlation of two [examples]; NaN for one example or where either side is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, targets)


def spearman(predicted: Array, targets: Array) -> float:
    """Spearman rank correlation of two [examples], ties by mean rank; NaN as in `pearson`."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, targets)


def mean_squared_error(predicted: Array, targets: Array) -> float:
    """Mean of the squared differences of two [examples], in the targets' unit squared."""
    return float(np.mean(np.square(np.asarray(predicted, np.float64) - np.asarray(targets, np.float64))))


def _correlation(correlate: Callable[..., Any], predicted: Array, targets: Array) -> float:
    if len(targets) < 2:  # scipy refuses it
        return float("nan")
    with warnings.catch_warnings():  # a constant side is documented as NaN, a nearly constant one as imprecise
        warnings.simplefilter("ignore")
        return float(correlate(np.asarray(predicted, np.float64), np.asarray(targets, np.float64)).statistic)


def _pair(predicted: ArrayLike, labels: ArrayLike, dimensions: int) -> tuple[Array, Array]:
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or labels.ndim != dimensions or not labels.size:
        expected = "the same for both, [examples" + (", labels]" if dimensions == 2 else "]") + ", not empty"
        raise ValueError(f"shapes {predicted.shape} of the predictions and {labels.shape} of the labels: {expected}")
    return predicted, labels
