"""How good scores are: accuracy, by class too, and which classes are taken for which.

Shape suffixes: N pictures, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.probe.samples import check_features, check_labels, chunks

TOP = 5


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
