"""The objective of a linear probe, its gradient and its preconditioner.

The objective is mean cross-entropy (nats) + strength / 2 * ||W||^2; the bias is free. scikit-learn's sum of losses is
N times that, so its C is 1 / (strength * N) (for two classes 2 / (strength * N): it has one vector where softmax has
two that are each other's negative).

Features of a layer are strongly correlated, so that the plain problem is badly conditioned. At W = 0 its Hessian is
known: (1/C)(I - 11'/C) x M + strength, M being the second moments of the features (and of the bias's constant 1). Our
solvers work in the coordinates V = L' W where L L' = M / C + strength, in which that Hessian is about the identity: the
minimum is the same, and L-BFGS needs 20 to 60 passes over the data for it in the place of 90 to 1000.

Shape suffixes: N pictures, D width of the features, E = D + 1 with the bias as last row, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from imagegpt.metrics import CHUNK
from imagegpt.probe.samples import Rows

if TYPE_CHECKING:
    import torch

SAMPLE = 4  # rows for each feature that the second moments are taken of
ROUNDING = 1e-6  # of their trace: what float32 leaves unsure of them
WORTH = 1e8  # operations of a matrix product for each thread: with less, threads wait for one another


class Problem:
    """The objective over some rows, its gradient and its preconditioner.

    Args:
        rows: features and labels.
        classes: C; every one of them occurs.
    """

    def __init__(self, rows: Rows, classes: int) -> None:
        self.rows, self.classes = rows, classes
        self._moments_EE = self._second_moments()

    def value(self, w_EC: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The objective and its gradient (E, C), by one pass over the rows."""
        import torch

        weight_DC, bias_C = (part.float().to(self.rows.y.device) for part in (w_EC[:-1], w_EC[-1]))
        value = strength / 2 * w_EC[:-1].square().sum()
        gradient_EC = torch.cat([strength * w_EC[:-1], torch.zeros_like(w_EC[-1:])])
        for x, y in self.rows.passes(self.classes):
            log_p = torch.log_softmax(torch.addmm(bias_C, x, weight_DC), 1)
            value -= log_p.gather(1, y[:, None]).cpu().double().sum() / len(self.rows)
            gradient_EC += outer(x, residuals(log_p, y)).double().cpu() / len(self.rows)
        return value, gradient_EC

    def threads(self, rows: int | None = None) -> AbstractContextManager[None]:
        """torch's threads while products of so many rows (default: of a pass) are computed; see `threads_for`."""
        numbers = min(CHUNK, len(self.rows) * self.rows.width) if rows is None else rows * self.rows.width
        return threads_for(2.0 * self.classes * max(numbers, self.rows.width**2))

    def preconditioner(self, strength: float) -> torch.Tensor:
        """The lower Cholesky factor (E, E) of the Hessian at W = 0, up to the coupling of classes; the bias's is free.

        Any would leave the minimum where it is, so rounding is kept from making it indefinite.
        """
        import torch

        curvature_EE = self._moments_EE / self.classes
        penalty_E = torch.full((len(curvature_EE),), strength, dtype=torch.float64)
        penalty_E[-1] = 0
        return torch.linalg.cholesky(curvature_EE + penalty_E.diag())

    def excess(self, w_EC: torch.Tensor, strength: float, lower_EE: torch.Tensor) -> float:
        """About how far the objective is above its minimum: half the squared gradient, preconditioned."""
        return float(solve(lower_EE, self.value(w_EC, strength)[1], upper=False).square().sum() / 2)

    def _second_moments(self) -> torch.Tensor:
        """Of features and the constant 1, over some rows at even distances."""
        import torch

        width, count = self.rows.width, len(self.rows)
        places = np.linspace(0, count - 1, min(count, SAMPLE * (width + 1))).astype(np.int64)
        moments_EE = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        for part in np.array_split(places, SAMPLE):
            x = self.rows.batch(part)[0]
            one = torch.ones(len(x), 1, device=x.device)
            moments_EE += outer(x, torch.cat([x, one], 1)).double().cpu() / len(places)
        unsure = ROUNDING * moments_EE.trace()
        return moments_EE + unsure * torch.eye(width + 1, dtype=torch.float64)


def residuals(log_p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Probabilities minus one-hot labels: the gradient of the cross-entropy by the logits; in place of `log_p`."""
    import torch

    residuals = log_p.exp_()
    residuals[torch.arange(len(y), device=y.device), y] -= 1
    return residuals


def outer(x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[x, 1]' right, without making [x, 1]."""
    import torch

    return torch.cat([x.T @ right, right.sum(0, keepdim=True)])


def solve(triangle: torch.Tensor, right: torch.Tensor, upper: bool) -> torch.Tensor:
    """The solution of a triangular system."""
    import torch

    return torch.linalg.solve_triangular(triangle, right, upper=upper).contiguous()


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """No more of torch's threads than a product of so many operations keeps busy.

    On two cores that others used too, a probe fitted by SGD took 16 s with one thread and over 290 s with two.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, int(operations / WORTH))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
