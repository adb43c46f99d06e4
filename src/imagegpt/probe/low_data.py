"""Few labels: probes of random class-balanced subsets (Chen et al. 2020, "Low-Data CIFAR-10 Classification")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError, check_count
from imagegpt.metrics import Index, check_labels, evaluate
from imagegpt.painting import Progress
from imagegpt.probe.linear import fit_logistic
from imagegpt.probe.samples import check_training

LABELS_PER_CLASS = (4, 25, 400)  # the paper's
SELECTION_FOLDS = 5


@dataclass(frozen=True)
class LowData:
    """What a number of labels is worth.

    Args:
        labels_per_class: how many each subset has.
        accuracies: top-1 on all test pictures, of the probe of each subset.
        strengths: of their penalties.
    """

    labels_per_class: int
    accuracies: tuple[float, ...]
    strengths: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float | None:
        """The accuracies' sample standard deviation (n - 1 in the denominator); `None` for a single one."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        told = {"accuracies": list(self.accuracies), "strengths": list(self.strengths)}
        return {"labels_per_class": self.labels_per_class, "mean": self.mean, "deviation": self.deviation, **told}


def low_data(
    x_ND: NDArray[Any],
    y_N: NDArray[Any],
    x_MD: NDArray[Any],
    y_M: NDArray[Any],
    classes: int,
    *,
    labels_per_class: Sequence[int] = LABELS_PER_CLASS,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> list[LowData]:
    """Fit probes to a few labels of each class, and test each on all test pictures.

    A tenth of four pictures is none, so the strength is chosen inside each subset by stratified cross-validation: with
    n labels a class in min(n, 5) folds, so that with four each picture of a class is held out once while three stay.
    With one label a class nothing can be held out: give a `strength`.

    Args:
        x_ND, y_N: features and labels of the training pictures, of which the subsets are drawn.
        x_MD, y_M: of the test pictures.
        classes: C.
        labels_per_class: how many.
        folds: subsets of each size.
        seed: of the subsets and of the cross-validation; each subset depends on the seed, its size and its number only.
        progress: called with (probes done, probes in all).
        options: of `imagegpt.probe.linear.fit_logistic`.

    Raises:
        InputError: what `fit_logistic` refuses, or a class that has too few pictures.
    """
    x_ND, y_N = check_training(x_ND, y_N, classes)
    y_M = check_labels(y_M, len(x_MD), classes)
    check_count("folds", folds)
    check_count("seed", seed, 0)
    for count in labels_per_class:
        check_count("labels_per_class", count)
        _check_enough(y_N, count)
        if count == 1 and options.get("strength") is None:
            raise InputError("With one label a class nothing can be held out to choose the strength; give a strength.")
    found: list[LowData] = []
    for count in labels_per_class:
        accuracies, strengths = [], []
        for subset in subsets(y_N, count, folds, seed):
            fit = fit_logistic(
                np.asarray(x_ND[subset]),
                y_N[subset],
                classes,
                **{"folds": min(count, SELECTION_FOLDS) if count > 1 else None, "seed": seed, **options},
            )
            accuracies.append(evaluate(fit.probe.scores(x_MD), y_M, classes).top1)
            strengths.append(fit.strength)
            if progress is not None:
                progress(len(found) * folds + len(accuracies), len(labels_per_class) * folds)
        found.append(LowData(count, tuple(accuracies), tuple(strengths)))
    return found


def subsets(y_N: Index, count: int, folds: int, seed: int) -> Iterator[Index]:
    """Rows of random subsets, ascending, with `count` of each class that occurs, none twice in a subset."""
    for fold in range(folds):
        rng = np.random.default_rng([seed, count, fold])
        chosen = [rng.choice(np.flatnonzero(y_N == label), count, replace=False) for label in np.unique(y_N)]
        yield np.sort(np.concatenate(chosen))


def _check_enough(y_N: Index, count: int) -> None:
    present, pictures = np.unique(y_N, return_counts=True)
    least = pictures.argmin()
    if pictures[least] < count:
        raise InputError(f"{count} labels a class are asked for; class {present[least]} has {pictures[least]}.")
