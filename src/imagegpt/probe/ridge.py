"""Ridge regression on one-hot labels: a linear probe in closed form.

Shape suffixes: N pictures, D width of the features, C classes, P classes that have pictures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.backends import torch_device
from imagegpt.errors import InputError
from imagegpt.metrics import Index
from imagegpt.painting import Progress
from imagegpt.probe.linear import Fit, assemble
from imagegpt.probe.objective import outer
from imagegpt.probe.samples import Rows, check_training
from imagegpt.probe.selection import Candidate, Selection

if TYPE_CHECKING:
    import torch

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 5))  # 1e-4 to 100, two a decade


def fit_ridge(
    x_ND: NDArray[Any],
    y_N: NDArray[Any],
    classes: int,
    *,
    strength: float | None = None,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.1,
    folds: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Minimise mean ||W x + b - one-hot label||^2 + strength ||W||^2 over standardised features, the bias being free.

    One Cholesky factor of D x D a strength. scikit-learn's alpha is strength * N. The strength is chosen as
    `imagegpt.probe.linear.fit_logistic` does, on the same held-out pictures.

    Args:
        x_ND, y_N, classes, strength, strengths, held_out, folds, seed, device, progress: see `fit_logistic`.

    Raises:
        InputError: features, labels or numbers that can't be used.
    """
    began = time.perf_counter()
    x_ND, y_N = check_training(x_ND, y_N, classes)
    place = torch_device(device)

    def solve(index: Index, wanted: Sequence[float]) -> Iterator[Candidate]:
        present, compact = np.unique(y_N[index], return_inverse=True)
        rows = Rows(x_ND, compact, index, standardize=True, device=place)
        bias_P = np.bincount(compact) / len(index)  # the features have mean 0
        moments_DD, products_DP = _sums(rows, len(present))
        for strength in wanted:
            weight_DP = _solution(moments_DD, products_DP, strength).numpy()
            yield Candidate(strength, assemble(rows.mean_D, rows.scale_D, weight_DP, bias_P, present, classes))

    selection = Selection(strength, strengths, held_out, folds, seed)
    best, accuracies = selection.run(x_ND, y_N, solve, progress)
    return Fit(best.probe, "ridge", best.strength, accuracies, time.perf_counter() - began)


def _sums(rows: Rows, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Second moments (D, D) of the features and their mean products (D, P) with one-hot labels, by one pass."""
    import torch

    sums = torch.zeros(rows.width + 1, rows.width + classes, dtype=torch.float64)
    for x, y in rows.passes():
        right = torch.cat([x, torch.nn.functional.one_hot(y, classes).to(x.dtype)], 1)
        sums += outer(x, right).double().cpu()
    sums = sums[:-1] / len(rows)
    return sums[:, : rows.width], sums[:, rows.width :]


def _solution(moments_DD: torch.Tensor, products_DP: torch.Tensor, strength: float) -> torch.Tensor:
    import torch

    penalty = strength * torch.eye(len(moments_DD), dtype=torch.float64)
    factor_DD, failed = torch.linalg.cholesky_ex(moments_DD + penalty)
    if failed:
        raise InputError(
            f"A strength of {strength:g} is lost in the rounding of features of which some follow from others: give a "
            f"larger one, such as {STRENGTHS[0]:g}."
        )
    return torch.cholesky_solve(products_DP, factor_DD)
