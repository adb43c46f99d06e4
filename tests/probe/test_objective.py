"""The objective of linear probes and its gradient, against loops and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imagegpt import metrics
from imagegpt.probe import objective
from imagegpt.probe.objective import Problem, threads_for
from imagegpt.probe.samples import Rows
from imagegpt.probe.solvers import lbfgs
from reference.probing import logistic_objective


def problem(count=60, width=5, classes=3, seed=0) -> Problem:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 1
    y = np.arange(count) % classes
    return Problem(Rows(x, y, np.arange(count), standardize=True, device=torch.device("cpu")), classes)


def weights(width=5, classes=3, seed=1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(width + 1, classes)))


def by_loops(problem: Problem, w_EC: torch.Tensor, strength: float) -> float:
    [(x, y)] = problem.rows.passes()
    w = w_EC.numpy()
    return logistic_objective(w[:-1].T, w[-1], x.double().numpy(), y.numpy(), strength)


@pytest.mark.parametrize("strength", [0.3, 1e-4])
def test_the_objective_is_that_of_the_loops(strength):
    p, w = problem(), weights()
    assert float(p.value(w, strength)[0]) == pytest.approx(by_loops(p, w, strength), rel=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    p, w = problem(), weights()
    gradient = p.value(w, 0.2)[1]
    for place in np.ndindex(*w.shape):
        ahead, behind = w.clone(), w.clone()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        slope = (by_loops(p, ahead, 0.2) - by_loops(p, behind, 0.2)) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-5)


def test_chunks_make_no_difference(monkeypatch):
    p, w = problem(), weights()
    value, gradient = p.value(w, 0.2)
    monkeypatch.setattr(metrics, "CHUNK", 35)
    assert len(list(p.rows.passes())) > 5
    again, other = p.value(w, 0.2)
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(other, gradient, atol=1e-6)


def test_the_preconditioner_is_the_hessian_at_zero():
    p, strength = problem(24, classes=4), 0.05
    lower = p.preconditioner(strength)
    zero = torch.zeros(6, 4, dtype=torch.float64)
    # along a direction that sums to 0 over the classes, (1/C)(I - 11'/C) is 1/C
    direction = weights(classes=4)
    direction -= direction.mean(1, keepdim=True)
    step = 1e-3
    change = (p.value(zero + step * direction, strength)[1] - p.value(zero - step * direction, strength)[1]) / (
        2 * step
    )
    np.testing.assert_allclose(lower @ lower.T @ direction, change, atol=2e-4)


@pytest.mark.parametrize("strength", [1e-2, 1e-6])
def test_it_can_be_factored_even_where_features_repeat(strength):
    x = np.repeat(np.random.default_rng(0).normal(size=(40, 2)), 30, 1)
    y = np.arange(40) % 2
    rows = Rows(x, y, np.arange(40), standardize=True, device=torch.device("cpu"))
    [found] = lbfgs(rows, 2, [strength])
    assert found.converged


def test_the_excess_is_about_what_the_objective_is_above_its_minimum():
    p = problem(200)
    [found] = lbfgs(p.rows, 3, [0.1])
    least = float(p.value(found.w_EC, 0.1)[0])
    away = found.w_EC + 0.05 * weights()
    above = float(p.value(away, 0.1)[0]) - least
    assert 0.3 * above < p.excess(away, 0.1, p.preconditioner(0.1)) < 3 * above


def test_preconditioning_saves_iterations(monkeypatch):
    rng = np.random.default_rng(0)
    # two hidden causes behind twenty features
    hidden = rng.normal(size=(600, 2))
    x = hidden @ rng.normal(size=(2, 20)) + 0.02 * rng.normal(size=(600, 20))
    y = (hidden @ rng.normal(size=(2, 3)) + rng.normal(size=(600, 3))).argmax(1)
    rows = Rows(x, y, np.arange(600), standardize=True, device=torch.device("cpu"))
    [ours] = lbfgs(rows, 3, [1e-4])
    monkeypatch.setattr(Problem, "preconditioner", lambda self, _: torch.eye(21, dtype=torch.float64))
    monkeypatch.setattr(objective, "SAMPLE", 1)
    [plain] = lbfgs(rows, 3, [1e-4])
    assert ours.converged
    assert ours.iterations < plain.iterations / 2, (ours.iterations, plain.iterations)


def test_a_small_product_takes_one_thread_and_all_come_back(monkeypatch):
    before = torch.get_num_threads()
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for operations in (0, 2.5e8, 1e12):
        with pytest.raises(KeyboardInterrupt), threads_for(operations):
            raise KeyboardInterrupt
    assert asked == [1, 8, 2, 8, 8, 8]
    monkeypatch.undo()
    assert torch.get_num_threads() == before
