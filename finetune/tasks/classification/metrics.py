"""Metrics of classification and regression, computed by scikit-learn and scipy.

Metrics of answers and of entities are their tasks' own. Every value but the mean squared error is a share or a
correlation, not a percentage. The libraries are imported when the first value is computed.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pretrain.tracking.no_value import no_value

Array = NDArray[Any]


def classification_metrics(predicted: ArrayLike, labels: ArrayLike, num_labels: int) -> dict[str, float]:
    """Values of a task where every example has one label: `accuracy`, `f1_macro`, `f1_micro`, `matthews`.

    `predicted` and `labels` are label ids of shape [examples], from 0 to `num_labels` - 1. With two labels there is
    also `f1`: that of label 1, the positive one. Over all labels `f1_micro` equals the accuracy; `f1_macro` leaves out
    a label that occurs on neither side. The Matthews correlation (Gorodkin 2004) is 0.0 where a single label is
    predicted. Where all examples have one label it is NaN, and `f1` where none has label 1. Raises `ValueError` for
    shapes that differ, no examples or ids outside the range.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    predicted, labels = _pair(predicted, labels, dimensions=1)
    low, high = min(predicted.min(), labels.min()), max(predicted.max(), labels.max())
    if low < 0 or high >= num_labels:
        raise ValueError(f"label ids from {low} to {high}: with {num_labels} labels they are 0 to {num_labels - 1}")
    values = {"accuracy": float(accuracy_score(labels, predicted))}
    if num_labels == 2:
        values["f1"] = _f1(predicted, labels, "binary")
    values["f1_macro"] = _f1(predicted, labels, "macro")
    values["f1_micro"] = _f1(predicted, labels, "micro")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        values["matthews"] = float(matthews_corrcoef(labels, predicted))
    if labels.min() == labels.max():
        values |= no_value("matthews", why="all examples have the same label")
    if "f1" in values and not labels.any():
        values |= no_value("f1", why="no example has the second label, whose F1 it is")
    return values


def multi_label_metrics(predicted: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Values of a task where every example has any number of labels: `accuracy`, `f1_macro`, `f1_micro`.

    `predicted` and `labels` are zeros and ones (or booleans) of shape [examples, labels]. `accuracy` is the share of
    examples whose labels are all right. `f1_micro` counts all decisions together; `f1_macro` is the mean over labels,
    where a label that no example has and nothing predicts counts as 0.0. Both are NaN where no example has any label.
    Raises `ValueError` for shapes that differ, no examples or other values.
    """
    predicted, labels = _pair(predicted, labels, dimensions=2)
    if not (np.isin(predicted, (0, 1)).all() and np.isin(labels, (0, 1)).all()):
        raise ValueError("multi-label predictions and labels are zeros and ones: compare probabilities to a threshold")
    predicted, labels = predicted.astype(int), labels.astype(int)
    values = {
        "accuracy": float((predicted == labels).all(axis=1).mean()),
        "f1_macro": float(np.mean([_f1(*columns, "binary") for columns in zip(predicted.T, labels.T, strict=True)])),
        "f1_micro": _f1(predicted.ravel(), labels.ravel(), "binary"),
    }
    return values if labels.any() else values | no_value("f1_macro", "f1_micro", why="no example has a label")


def regression_metrics(predicted: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Values of a task with one number per example: `pearson`, `spearman`, `mse`.

    `predicted` and `targets` are numbers of shape [examples]; the arithmetic is in float64. Correlations are NaN for
    one example and where either side is constant; ties have their mean rank. A NaN on either side makes every value
    NaN. Raises `ValueError` for shapes that differ or no examples.
    """
    from scipy.stats import pearsonr, spearmanr

    predicted, targets = (side.astype(np.float64) for side in _pair(predicted, targets, dimensions=1))
    values = {"pearson": np.nan, "spearman": np.nan}
    if len(targets) > 1:  # scipy refuses less
        with warnings.catch_warnings():  # of constant sides, whose NaN is documented above
            warnings.simplefilter("ignore")
            for name, correlate in (("pearson", pearsonr), ("spearman", spearmanr)):
                found: Any = correlate(predicted, targets)
                values[name] = float(found.statistic)
    if undefined := [name for name, value in values.items() if np.isnan(value)]:
        no_value(*undefined, why=_no_correlation(predicted, targets))
    return values | {"mse": float(np.mean(np.square(predicted - targets)))}


def _no_correlation(predicted: Array, targets: Array) -> str:
    if len(targets) == 1:
        return "there is one example"
    for name, side in (("targets", targets), ("predictions", predicted)):
        if (side == side[0]).all():
            return f"all {name} are equal"
    return "numbers are not finite, or too large or too close for float64"


def _f1(predicted: Array, labels: Array, average: Literal["binary", "macro", "micro"]) -> float:
    """F1 of label ids, both [examples]; a quotient by 0 counts as 0.0."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average=average, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def _pair(predicted: ArrayLike, labels: ArrayLike, dimensions: int) -> tuple[Array, Array]:
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or labels.ndim != dimensions or not labels.size:
        expected = "the same for both, [examples" + (", labels]" if dimensions == 2 else "]") + ", not empty"
        raise ValueError(f"shapes {predicted.shape} of the predictions and {labels.shape} of the labels: {expected}")
    return predicted, labels
