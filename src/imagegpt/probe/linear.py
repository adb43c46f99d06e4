"""Linear probes: multinomial logistic regression on features (Chen et al. 2020, "Linear Probing").

Shape suffixes: N pictures, D width of the features, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.backends import torch_device
from imagegpt.errors import InputError, check_count
from imagegpt.metrics import Index, check_features, chunks, softmax
from imagegpt.painting import Progress
from imagegpt.probe.samples import Rows, check_training, fits, read_rows
from imagegpt.probe.selection import Candidate, Selection

Solver = Literal["auto", "lbfgs", "sgd", "sklearn"]

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 1))  # 1e-6 to 1, two a decade
NEVER = np.finfo(np.float32).min  # the bias of a class without training pictures: its probability is 0


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier of standardised features.

    Args:
        mean_D, scale_D: a feature counts as (x - mean) / scale.
        weight_CD, bias_C: logits are W x + b.
    """

    mean_D: NDArray[np.float32]
    scale_D: NDArray[np.float32]
    weight_CD: NDArray[np.float32]
    bias_C: NDArray[np.float32]

    def scores(self, x_ND: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, C), in chunks, so that features may lie on the disk.

        Raises:
            InputError: features of another width, or such as are not finite.
        """
        x_ND = check_features(x_ND)
        if x_ND.shape[1] != len(self.mean_D):
            raise InputError(f"The probe reads {len(self.mean_D)} features a picture, not {x_ND.shape[1]}.")
        scores_NC = np.empty((len(x_ND), len(self.bias_C)), np.float32)
        for part in chunks(len(x_ND), max(self.weight_CD.shape)):
            standard = (read_rows(x_ND, part) - self.mean_D) / self.scale_D
            scores_NC[part] = standard @ self.weight_CD.T + self.bias_C
        return scores_NC

    def probabilities(self, x_ND: NDArray[Any]) -> NDArray[np.float32]:
        """The softmax of the scores, (N, C)."""
        return softmax(self.scores(x_ND))


@dataclass(frozen=True)
class Fit:
    """A fitted probe, and how it came about.

    Args:
        probe: the classifier.
        solver: that fitted it.
        strength: of the penalty.
        held_out: accuracy on held-out training pictures at each strength; empty where the strength was given.
        seconds: it took.
        converged: whether the last fit reached the minimum.
        iterations: of the last fit; steps, for SGD.
    """

    probe: LinearProbe
    solver: str
    strength: float
    held_out: dict[float, float]
    seconds: float
    converged: bool = True
    iterations: int = 0


def fit_logistic(
    x_ND: NDArray[Any],
    y_N: NDArray[Any],
    classes: int,
    *,
    solver: Solver = "auto",
    strength: float | None = None,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.1,
    folds: int | None = None,
    seed: int = 0,
    device: str | None = None,
    standardize: bool = True,
    max_iter: int | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit a linear probe: mean cross-entropy + strength / 2 * ||W||^2 is minimised, the bias being free.

    The strength is the one of best accuracy on training pictures that are held out, of equally good ones the strongest;
    the probe is then fitted to all of them.

    Args:
        x_ND: features (N, D), which may be memory-mapped.
        y_N: labels, 0 to C - 1. A class without pictures is never predicted.
        classes: C.
        solver: "lbfgs" (full batch, on any device), "sgd" (random batches), "sklearn" (scikit-learn's, for comparison);
            "auto": "lbfgs" while the features fit into 2 GiB, else "sgd". All have the same minimum.
        strength: of the penalty; scikit-learn's C is 1 / (strength * N). Default: chosen.
        strengths: to choose from.
        held_out: part of each class that is held out to choose.
        folds: choose by stratified cross-validation with so many folds in its place; for few pictures.
        seed: of what is held out, and of SGD's batches.
        device: "cpu", "cuda", "mps", ...; default: the first of cuda, mps, cpu that is there.
        standardize: give each feature mean 0 and standard deviation 1 over the training pictures first.
        max_iter: iterations at most (default 1000), epochs for SGD (default 20).
        progress: called with (fits done, fits in all).

    Raises:
        InputError: features, labels or numbers that can't be used.
        MissingExtra: the solver "sklearn" without scikit-learn.
    """
    from imagegpt.probe.solvers import SOLVERS

    began = time.perf_counter()
    x_ND, y_N = check_training(x_ND, y_N, classes)
    if solver not in get_args(Solver):
        raise InputError(f"The solver must be one of {', '.join(get_args(Solver))}, not {solver!r}.")
    if max_iter is not None:
        check_count("max_iter", max_iter)
    name = ("lbfgs" if fits(*x_ND.shape) else "sgd") if solver == "auto" else solver
    path = partial(SOLVERS[name], max_iter=max_iter, seed=seed)
    place = torch_device(device)

    def solve(index: Index, wanted: Sequence[float]) -> Iterator[Candidate]:
        present, compact = np.unique(y_N[index], return_inverse=True)  # solvers know no class without pictures
        rows = Rows(x_ND, compact, index, standardize=standardize, device=place)
        for found in path(rows, len(present), wanted):
            w_EC = found.w_EC.numpy()
            probe = assemble(rows.mean_D, rows.scale_D, w_EC[:-1], w_EC[-1], present, classes)
            yield Candidate(found.strength, probe, found.iterations, found.converged)

    selection = Selection(strength, strengths, held_out, folds, seed)
    best, accuracies = selection.run(x_ND, y_N, solve, progress)
    seconds = time.perf_counter() - began
    return Fit(best.probe, name, best.strength, accuracies, seconds, best.converged, best.iterations)


def assemble(
    mean_D: NDArray[np.float32],
    scale_D: NDArray[np.float32],
    weight_DP: NDArray[Any],
    bias_P: NDArray[Any],
    present: Index,
    classes: int,
) -> LinearProbe:
    """A probe of all classes from the weights and the bias of those that have pictures."""
    weight_CD = np.zeros((classes, len(mean_D)), np.float32)
    bias_C = np.full(classes, NEVER)
    weight_CD[present], bias_C[present] = weight_DP.T, bias_P
    return LinearProbe(mean_D, scale_D, weight_CD, bias_C)
