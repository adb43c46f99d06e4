"""How good predictions are: accuracy, calibration, confusions; precision of many labels; two kinds apart; errors.

Shape suffixes: N pictures, C classes (of a regression: its numbers), M bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

TOP = 5
BINS = 15  # of calibration (Guo et al. 2017, section 3)
CHUNK = 1 << 22  # numbers that are worked on at once

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Metrics:
    """What scores are worth.

    Args:
        count: pictures.
        top1: part of them whose class has the highest score.
        top5: part of them whose class is among the five highest; `None` with fewer than six classes.
        per_class_C: accuracy on the pictures of each class; NaN where there are none.
        confusion_CC: pictures by true class (rows) and predicted class (columns).
    """

    count: int
    top1: float
    top5: float | None
    per_class_C: NDArray[np.float64]
    confusion_CC: NDArray[np.int64]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it; a class without pictures has accuracy `None`."""
        per_class = [None if np.isnan(value) else float(value) for value in self.per_class_C]
        confusion = self.confusion_CC.tolist()
        return {
            "count": self.count,
            "top1": self.top1,
            "top5": self.top5,
            "per_class": per_class,
            "confusion": confusion,
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Metrics:
        """What `as_dict` told."""
        per_class_C = np.array(told["per_class"], np.float64)
        confusion_CC = np.array(told["confusion"], np.int64)
        return cls(told["count"], told["top1"], told["top5"], per_class_C, confusion_CC)


def evaluate(scores_NC: NDArray[Any], y_N: NDArray[Any], classes: int) -> Metrics:
    """Measure scores against labels.

    Of equal scores the class with the lower number comes first.

    Args:
        scores_NC: one score for each picture and class, the higher the likelier; logits, votes, probabilities.
        y_N: true classes.
        classes: C.

    Raises:
        InputError: labels outside the training classes, no pictures, or scores that are no numbers.
    """
    scores_NC = check_features(scores_NC)
    if scores_NC.shape[1] != classes:
        raise InputError(f"There must be a score for each of {classes} classes, not {scores_NC.shape[1]}.")
    y_N = check_labels(y_N, len(scores_NC), classes)
    if np.isnan(scores_NC).any():
        raise InputError("The scores hold NaN.")
    rank_N = np.concatenate([_ranks(scores_NC[part], y_N[part]) for part in chunks(len(y_N), classes)])
    confusion_CC = np.zeros((classes, classes), np.int64)
    np.add.at(confusion_CC, (y_N, scores_NC.argmax(1)), 1)
    totals_C = confusion_CC.sum(1)
    per_class_C = np.where(totals_C > 0, confusion_CC.diagonal() / np.maximum(totals_C, 1), np.nan)
    top5 = float((rank_N < TOP).mean()) if classes > TOP else None
    return Metrics(len(y_N), float((rank_N == 0).mean()), top5, per_class_C, confusion_CC)


def _ranks(scores_NC: NDArray[Any], y_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the true one."""
    own_N1 = np.take_along_axis(scores_NC, y_N[:, None], 1)
    earlier_NC = np.arange(scores_NC.shape[1]) < y_N[:, None]
    return ((scores_NC > own_N1) | (scores_NC == own_N1) & earlier_NC).sum(1)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How sure predictions are, and how right, in bins of equal width by how sure they are (Guo et al. 2017).

    Args:
        count_M: pictures whose highest probability lies in each bin; a bin has its upper end, not its lower one.
        confidence_M: the mean of these probabilities; NaN in an empty bin.
        accuracy_M: part of these pictures that are predicted right; NaN in an empty bin.
    """

    count_M: NDArray[np.int64]
    confidence_M: NDArray[np.float64]
    accuracy_M: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over the pictures of |accuracy - confidence| of their bin."""
        gaps_M = np.nan_to_num(np.abs(self.accuracy_M - self.confidence_M))
        return float(self.count_M @ gaps_M / self.count_M.sum())


def reliability(probabilities_NC: NDArray[Any], y_N: NDArray[Any], bins: int = BINS) -> Reliability:
    """Sort predictions into bins by their confidence, the highest probability (Guo et al. 2017, section 2).

    Raises:
        InputError: as `evaluate`, or numbers outside of 0 to 1.
    """
    probabilities_NC, y_N = _check_probabilities(probabilities_NC, y_N)
    confidence_N = probabilities_NC.max(1).astype(np.float64)
    right_N = probabilities_NC.argmax(1) == y_N
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    count_M = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        means = [np.bincount(bin_N, of_N, bins) / count_M for of_N in (confidence_N, right_N)]
    return Reliability(count_M, *means)


def calibration_error(probabilities_NC: NDArray[Any], y_N: NDArray[Any], bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).

    Args:
        probabilities_NC: of each picture and class, 0 to 1.
        y_N: true classes.
        bins: of equal width.

    Raises:
        InputError: labels outside of the classes, no pictures, or numbers that are no probabilities.

    Example:
        >>> calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
        0.0
    """
    return reliability(probabilities_NC, y_N, bins).error


def brier_score(probabilities_NC: NDArray[Any], y_N: NDArray[Any]) -> float:
    """The mean squared distance from the true class's indicator, 0 to 2 (Brier 1950, "Verification of Forecasts")."""
    probabilities_NC, y_N = _check_probabilities(probabilities_NC, y_N)
    own_N = probabilities_NC[np.arange(len(y_N)), y_N].astype(np.float64)
    squares_N = np.square(probabilities_NC, dtype=np.float64).sum(1)
    return float((squares_N - 2 * own_N + 1).mean())


def negative_log_likelihood(probabilities_NC: NDArray[Any], y_N: NDArray[Any]) -> float:
    """The mean of -log of the true class's probability, in nats; one of 0 counts as the least that float32 has."""
    probabilities_NC, y_N = _check_probabilities(probabilities_NC, y_N)
    own_N = probabilities_NC[np.arange(len(y_N)), y_N].astype(np.float64)
    return float(-np.log(np.maximum(own_N, np.finfo(np.float32).tiny)).mean())


def average_precision(scores_NC: NDArray[Any], truth_NC: NDArray[Any]) -> NDArray[np.float64]:
    """The average precision of each class: the sum of precision times gained recall, from the highest score down.

    It is scikit-learn's `average_precision_score`, without interpolation; pictures with equal scores count together.

    Args:
        scores_NC: the higher the likelier.
        truth_NC: of 0 and 1, or booleans.

    Returns:
        (C,); NaN for a class that no picture has.

    Raises:
        InputError: other shapes, truths that are not 0 and 1, or scores that are no numbers.
    """
    scores_NC, truth_NC = check_features(scores_NC), _indicators(truth_NC)
    _check_same(scores_NC, truth_NC)
    if np.isnan(scores_NC).any():
        raise InputError("The scores hold NaN.")
    columns = zip(scores_NC.T, truth_NC.T, strict=True)
    return np.array([_average_precision(scores_N, truth_N) for scores_N, truth_N in columns])


def _average_precision(scores_N: NDArray[Any], truth_N: NDArray[np.bool_]) -> float:
    positives = truth_N.sum()
    if not positives:
        return float("nan")
    order = np.argsort(-scores_N, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)  # of each run of equal scores
    found = np.cumsum(truth_N[order])[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / positives)


def auroc(scores_N: NDArray[Any], truth_N: NDArray[Any]) -> float:
    """The area under the receiver operating characteristic: how often a positive has a higher score than a negative.

    Of all pairs of one positive and one negative, the part in which the positive scores higher, equal scores counting
    half: the Mann-Whitney statistic (Hanley and McNeil 1982), from the ranks. It is scikit-learn's `roc_auc_score`.

    Args:
        scores_N: the higher, the more positive; infinite ones are allowed.
        truth_N: of 0 and 1, or booleans.

    Raises:
        InputError: scores or truths that can't be used, or of only one kind.

    Example:
        >>> auroc(np.array([1, 2, 2, 3]), np.array([0, 0, 1, 1]))
        0.875
    """
    scores_N, truth_N = _two_kinds(scores_N, truth_N)
    _, which_N, count_M = np.unique(scores_N, return_inverse=True, return_counts=True)
    last_M = np.cumsum(count_M)  # ranks from 1; equal scores share the mean of theirs
    rank_N = (last_M - (count_M - 1) / 2)[which_N]
    positives = int(truth_N.sum())
    pairs = positives * (len(truth_N) - positives)
    return float((rank_N[truth_N].sum() - positives * (positives + 1) / 2) / pairs)


def fpr_at_tpr(scores_N: NDArray[Any], truth_N: NDArray[Any], tpr: float = 0.95) -> float:
    """The part of the negatives above a threshold that at least `tpr` of the positives reach.

    The threshold is the highest score that so many positives reach, and negatives equal to it count as above: the
    lowest such rate that a threshold can have, without interpolation.

    Args:
        scores_N: the higher, the more positive; infinite ones are allowed.
        truth_N: of 0 and 1, or booleans.
        tpr: above 0, at most 1.

    Raises:
        InputError: scores or truths that can't be used, or of only one kind, or a rate out of its range.

    Example:
        >>> fpr_at_tpr(np.array([1, 2, 2, 3]), np.array([0, 0, 1, 1]))
        0.5
    """
    if not 0 < tpr <= 1:
        raise InputError(f"tpr must be above 0 and at most 1, not {tpr}.")
    scores_N, truth_N = _two_kinds(scores_N, truth_N)
    positive_N = np.sort(scores_N[truth_N])[::-1]
    needed = int(np.argmax(np.arange(1, len(positive_N) + 1) / len(positive_N) >= tpr))
    return float((scores_N[~truth_N] >= positive_N[needed]).mean())


def f1(predicted_NC: NDArray[Any], truth_NC: NDArray[Any]) -> float:
    """Micro-averaged F1: 2 TP / (2 TP + FP + FN) over all pictures and classes; 0 where nothing is there to count.

    Args:
        predicted_NC, truth_NC: of 0 and 1, or booleans.

    Raises:
        InputError: other shapes or values.
    """
    predicted_NC, truth_NC = _indicators(predicted_NC), _indicators(truth_NC)
    _check_same(predicted_NC, truth_NC)
    hits, told = (predicted_NC & truth_NC).sum(), predicted_NC.sum() + truth_NC.sum()
    return float(2 * hits / told) if told else 0.0


def errors(predicted_NC: NDArray[Any], target_NC: NDArray[Any]) -> dict[str, float]:
    """Errors of a regression, each the mean over its numbers, as scikit-learn defines them.

    Args:
        predicted_NC, target_NC: numbers.

    Returns:
        "mse", "mae" and "r2": 1 - squared errors / squared distances from the mean; NaN where a target never changes.

    Raises:
        InputError: other shapes, or what is not finite.
    """
    predicted_NC, target_NC = check_features(predicted_NC), check_features(target_NC)
    _check_same(predicted_NC, target_NC)
    if not (np.isfinite(predicted_NC).all() and np.isfinite(target_NC).all()):
        raise InputError("The predictions or the targets hold NaN or infinite numbers.")
    target_NC = target_NC.astype(np.float64)
    gap_NC = predicted_NC - target_NC
    spread_C = np.square(target_NC - target_NC.mean(0)).sum(0)
    ratio_C = np.divide(np.square(gap_NC).sum(0), spread_C, out=np.full(len(spread_C), np.nan), where=spread_C > 0)
    return {
        "mse": float(np.square(gap_NC).mean()),
        "mae": float(np.abs(gap_NC).mean()),
        "r2": float((1 - ratio_C).mean()),
    }


def softmax(scores_NC: NDArray[Any]) -> NDArray[Any]:
    """Scores to probabilities that sum to 1 for each picture."""
    powers_NC = np.exp(scores_NC - scores_NC.max(1, keepdims=True))
    return powers_NC / powers_NC.sum(1, keepdims=True)


def sigmoid(scores_NC: NDArray[Any]) -> NDArray[Any]:
    """Scores to a probability for each class by itself."""
    falling_NC = np.exp(-np.abs(scores_NC))  # at most 1, so it never overflows
    return np.where(scores_NC >= 0, 1, falling_NC) / (1 + falling_NC)


def check_features(x_ND: NDArray[Any]) -> NDArray[Any]:
    """Features as an array of real numbers, (N, D); not copied, so a memory-mapped one stays on the disk.

    Raises:
        InputError: another shape or type, or nothing in it.
    """
    x_ND = np.asarray(x_ND)
    if x_ND.ndim != 2 or not x_ND.size:
        raise InputError(f"Features must be (pictures, width) and not empty, not of shape {x_ND.shape}.")
    if x_ND.dtype.kind not in "fiu":
        raise InputError(f"Features must be real numbers, not {x_ND.dtype}.")
    return x_ND


def check_labels(y_N: NDArray[Any], count: int, classes: int) -> Index:
    """Labels of `count` pictures, each 0 to C - 1.

    Raises:
        InputError: their number, type or range is another.
    """
    y_N = np.asarray(y_N)
    if y_N.shape != (count,):
        raise InputError(f"There must be one label for each of {count} pictures, not labels of shape {y_N.shape}.")
    if y_N.dtype.kind not in "iu":
        raise InputError(f"Labels must be integers, not {y_N.dtype}.")
    if count and not (y_N.min() >= 0 and y_N.max() < classes):
        raise InputError(f"Labels must be 0 to {classes - 1}, not {y_N.min()} to {y_N.max()}.")
    return y_N.astype(np.int64)


def chunks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows; a slice of rows of this width has about CHUNK numbers."""
    step = max(1, CHUNK // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _check_probabilities(probabilities_NC: NDArray[Any], y_N: NDArray[Any]) -> tuple[NDArray[Any], Index]:
    probabilities_NC = check_features(probabilities_NC)
    y_N = check_labels(y_N, *probabilities_NC.shape)
    if not (probabilities_NC.min() >= 0 and probabilities_NC.max() <= 1 + 1e-6):  # NaN fails too
        raise InputError("Probabilities must be 0 to 1.")
    return probabilities_NC, y_N


def _two_kinds(scores_N: NDArray[Any], truth_N: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    scores_N, truth_N = np.asarray(scores_N), _indicators(truth_N)
    if scores_N.ndim != 1 or scores_N.dtype.kind not in "fiu" or np.isnan(scores_N).any():
        raise InputError("There must be one score for each picture, a number.")
    _check_same(scores_N, truth_N)
    if truth_N.all() or not truth_N.any():
        raise InputError("There must be scores of both kinds, positive and negative.")
    return scores_N, truth_N


def _indicators(truth_NC: NDArray[Any]) -> NDArray[np.bool_]:
    truth_NC = np.asarray(truth_NC)
    if not np.isin(truth_NC, (0, 1)).all():
        raise InputError("Whether a picture has a label must be told by 0 and 1.")
    return truth_NC.astype(bool)


def _check_same(scores_NC: NDArray[Any], truth_NC: NDArray[Any]) -> None:
    if scores_NC.shape != truth_NC.shape:
        raise InputError(f"Scores of shape {scores_NC.shape} don't fit truths of shape {truth_NC.shape}.")
