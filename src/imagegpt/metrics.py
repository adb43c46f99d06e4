"""How good scores are: accuracy, by class too, and which classes are taken for which.

Shape suffixes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

TOP = 5
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
