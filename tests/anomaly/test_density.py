"""The density of statistics, against scipy's kernel density estimate, and where it could go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from imagegpt.anomaly import density as module
from imagegpt.anomaly.density import Density


def normal(count=200, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


@pytest.mark.parametrize(("count", "width"), [(200, 5), (30, 5), (50, 1), (2, 1)])
def test_it_is_scipys(count, width):
    x, asked = normal(count, width), normal(40, width, 1)
    expected = -gaussian_kde(x.T, bw_method="scott").logpdf(asked.T)
    near = expected < 600  # beyond that scipy's sum of powers is 0
    np.testing.assert_allclose(Density(x).surprise(asked)[near], expected[near], rtol=1e-5, atol=1e-5)


def test_by_the_formula():
    x, asked = normal(20, 2), normal(3, 2, 1)
    width = 20 ** (-1 / 6)
    covariance = np.cov(x.T) * width**2
    expected = []
    for point in asked:
        powers = [np.exp(-(point - one) @ np.linalg.inv(covariance) @ (point - one) / 2) for one in x]
        expected.append(-np.log(np.mean(powers) / np.sqrt((2 * np.pi) ** 2 * np.linalg.det(covariance))))
    np.testing.assert_allclose(Density(x).surprise(asked), expected, rtol=1e-6)


def test_the_units_of_a_statistic_do_not_matter():
    x, asked, scale = normal(), normal(9, seed=1), np.array([1e-3, 1, 1e3, 7, 2])
    moved = Density(x * scale + 5).surprise(asked * scale + 5)
    np.testing.assert_allclose(moved - np.log(scale).sum(), Density(x).surprise(asked), rtol=1e-4)


@pytest.mark.parametrize("x", [np.ones((20, 5)), np.outer(np.arange(20.0), np.ones(5)), np.eye(5)[[0, 1] * 10]])
def test_statistics_in_a_plane_or_a_point(x):
    here, there = Density(x).surprise(np.stack([x[0], x[0] + [0, 0.5, 0, 0, 0]]))
    assert np.isfinite([here, there]).all() and there > here + 100


def test_far_away_is_farther_still():
    far = Density(normal()).surprise(np.array([[1e3] * 5, [1e4] * 5, [1e6] * 5]))
    assert np.isfinite(far).all() and (np.diff(far) > 0).all()


def test_many_points_in_blocks(monkeypatch):
    x, asked = normal(100), normal(31, seed=1)
    expected = Density(x).surprise(asked)
    monkeypatch.setattr(module, "BLOCK", 1700)  # three rows at a time
    np.testing.assert_allclose(Density(x).surprise(asked), expected)
    monkeypatch.setattr(module, "POINTS", 60)
    np.testing.assert_allclose(Density(x).surprise(asked), Density(x[:60]).surprise(asked))
    assert Density(x).surprise(asked[:0]).shape == (0,)


@given(st.integers(0, 10_000))
def test_it_is_a_density(seed):
    x = normal(12, 1, seed)
    grid = np.linspace(x.min() - 20 * x.std(), x.max() + 20 * x.std(), 20_001)
    assert np.exp(-Density(x).surprise(grid[:, None])).sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)
