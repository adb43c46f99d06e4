"""Three ways to the minimum of `imagegpt.probe.objective`: each goes from strong to weak penalties, with warm starts.

Shape suffixes: N pictures, D width of the features, E = D + 1 with the bias as last row, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from imagegpt.errors import MissingExtra
from imagegpt.probe.objective import Problem, outer, residuals, solve
from imagegpt.probe.samples import Rows

if TYPE_CHECKING:
    import torch

GRADIENT = 1e-5  # L-BFGS stops where no entry of the preconditioned gradient is larger
EXCESS = 1e-4  # nats that the objective may be above its minimum, by half the squared preconditioned gradient
BATCH, MOMENTUM, STEPS = 1024, 0.9, 1500  # of SGD; at least so many steps
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # learning rates that SGD tries


class Solution(NamedTuple):
    """The minimum at one strength: weights and bias (E, C) float64 on the CPU, and how it was reached."""

    strength: float
    w_EC: torch.Tensor
    iterations: int
    converged: bool


Path = Callable[..., Iterator[Solution]]


def lbfgs(rows: Rows, classes: int, strengths: Sequence[float], max_iter: int | None = None, **_: Any):
    """Full-batch L-BFGS (torch's, with a strong Wolfe line search), preconditioned; from strong to weak, warm starts.

    The data passes in float32, on the rows' device; the sums, the state and the preconditioner are float64.

    Yields:
        A `Solution` for each strength, strongest first.
    """
    import torch

    problem = Problem(rows, classes)
    w_EC = torch.zeros(rows.width + 1, classes, dtype=torch.float64)
    for strength in sorted(strengths, reverse=True):
        lower_EE = problem.preconditioner(strength)
        v_EC = lower_EE.T @ w_EC

        def closure(v_EC: torch.Tensor = v_EC, lower_EE: torch.Tensor = lower_EE, strength: float = strength):
            value, gradient_EC = problem.value(solve(lower_EE.T, v_EC, upper=True), strength)
            v_EC.grad = solve(lower_EE, gradient_EC, upper=False)
            return value

        optimizer = torch.optim.LBFGS(
            [v_EC],
            max_iter=max_iter or 1000,
            max_eval=2 * (max_iter or 1000),
            tolerance_grad=GRADIENT,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        with problem.threads():
            optimizer.step(closure)
        w_EC = solve(lower_EE.T, v_EC, upper=True)
        iterations = optimizer.state[v_EC]["n_iter"]
        yield Solution(strength, w_EC, iterations, problem.excess(w_EC, strength, lower_EE) <= EXCESS)


def sgd(rows: Rows, classes: int, strengths: Sequence[float], max_iter: int | None = None, seed: int = 0, **_: Any):
    """SGD with momentum 0.9 on random batches, the step falling to 0 along a cosine, preconditioned; warm starts.

    As in the paper's ImageNet probe several learning rates are tried, each about a third of the one before: at the
    strongest penalty, each for a whole run, until the objective that is left no longer falls.

    Args:
        rows, classes, strengths: the problem.
        max_iter: epochs; default 20. There are at least STEPS steps.
        seed: of the order of the pictures.

    Yields:
        A `Solution` for each strength, strongest first; its iterations are steps.
    """
    import torch

    problem = Problem(rows, classes)
    steps = max(STEPS, (20 if max_iter is None else max_iter) * math.ceil(len(rows) / BATCH))
    w_EC, rates = torch.zeros(rows.width + 1, classes, dtype=torch.float64), RATES
    for strength in sorted(strengths, reverse=True):
        lower_EE = problem.preconditioner(strength)
        best, best_EC = math.inf, w_EC
        for rate in rates:
            with problem.threads(BATCH):
                run_EC = _descend(problem, w_EC, strength, lower_EE, steps, rate, seed)
            value = float(problem.value(run_EC, strength)[0])
            if value < best:
                best, best_EC, rates = value, run_EC, (rate,)
            elif math.isfinite(best):
                break
        w_EC = best_EC
        yield Solution(strength, w_EC, steps, problem.excess(w_EC, strength, lower_EE) <= EXCESS)


def sklearn(rows: Rows, classes: int, strengths: Sequence[float], max_iter: int | None = None, **_: Any):
    """scikit-learn's LogisticRegression (L-BFGS, its defaults), with warm starts: the same minimum, for comparison.

    Yields:
        A `Solution` for each strength, strongest first.

    Raises:
        MissingExtra: scikit-learn is missing (extra "probe").
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise MissingExtra('The solver "sklearn"', "scikit-learn", "probe") from error
    import torch

    max_iter = max_iter or 1000
    x_ND = torch.cat([x for x, _ in rows.passes()]).cpu().numpy()
    y_N = rows.y.cpu().numpy()
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    for strength in sorted(strengths, reverse=True):
        model.set_params(C=(2 if classes == 2 else 1) / (strength * len(rows)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is told in the solution
            model.fit(x_ND, y_N)
        w_CE = np.column_stack([model.coef_, model.intercept_]).astype(np.float64)
        if classes == 2:
            w_CE = np.concatenate([-w_CE, w_CE]) / 2
        iterations = int(np.max(model.n_iter_))
        yield Solution(strength, torch.from_numpy(w_CE.T.copy()), iterations, iterations < max_iter)


SOLVERS: dict[str, Path] = {"lbfgs": lbfgs, "sgd": sgd, "sklearn": sklearn}


def _descend(
    problem: Problem, w_EC: torch.Tensor, strength: float, lower_EE: torch.Tensor, steps: int, rate: float, seed: int
):
    """One run of SGD from `w_EC`; the same weights for the same seed.

    A step along inv(L L') g in the coordinates of W is a plain one in those of V.
    """
    import torch

    device, rng = problem.rows.y.device, np.random.default_rng([seed, 2])
    inverse_EE = torch.cholesky_inverse(lower_EE).float().to(device)
    w = w_EC.float().to(device, copy=True)
    velocity, decay = torch.zeros_like(w), torch.full((len(w), 1), strength, device=device)
    decay[-1] = 0
    for step, places in zip(range(steps), _batches(len(problem.rows), rng), strict=False):
        x, y = problem.rows.batch(places)
        log_p = torch.log_softmax(torch.addmm(w[-1], x, w[:-1]), 1)
        gradient = outer(x, residuals(log_p, y)) / len(x) + decay * w
        velocity.mul_(MOMENTUM).add_(inverse_EE @ gradient)
        w -= rate / 2 * (1 + math.cos(math.pi * step / steps)) * velocity
    return w.double().cpu()


def _batches(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Places of random batches, without end: each picture once an epoch, the last incomplete batch left out."""
    size = min(BATCH, count)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield np.sort(order[start : start + size])
