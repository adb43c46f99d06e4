"""Planes of features against scikit-learn's principal components, and clusters that must stay together."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from sklearn.decomposition import PCA

from imagegpt.errors import InputError
from imagegpt.probe.plane import neighbour_plane, principal_plane


def drawn(count, width, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, width)) * np.geomspace(5, 0.1, width) + 3).astype(np.float32)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (6, 40), (200, 2), (3, 3), (2, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_the_principal_plane_is_scikit_learns(count, width, seed):
    x = drawn(count, width, seed)
    found = PCA(2, svd_solver="full").fit(x.astype(np.float64))
    xy, explained = principal_plane(x)
    assert xy.shape == (count, 2) and xy.dtype == np.float32
    np.testing.assert_allclose(xy, found.transform(x.astype(np.float64)), atol=1e-4)
    np.testing.assert_allclose(explained, found.explained_variance_ratio_, atol=1e-9)


def test_the_plane_keeps_all_of_two_wide_features_and_does_not_turn_over():
    x = drawn(30, 2)
    xy, explained = principal_plane(x)
    assert explained.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.norm(xy - xy[0], axis=1), np.linalg.norm(x - x[0], axis=1), atol=1e-4)
    np.testing.assert_allclose(principal_plane(x[::-1])[0], xy[::-1], atol=1e-5)
    np.testing.assert_allclose(principal_plane(x + 7)[0], xy, atol=1e-4)
    np.testing.assert_allclose(principal_plane(-x)[0], -xy, atol=1e-5)


@pytest.mark.parametrize("x", [np.full((5, 3), 0.1), np.full((1, 4), 2.0), np.full((4, 1), 1e6), np.ones((3, 2), int)])
def test_equal_features_are_one_point(x):
    xy, explained = principal_plane(x)
    assert xy.shape == (len(x), 2) and not xy.any() and explained.tolist() == [0, 0]


def test_features_of_one_direction_are_a_line():
    for x in (np.arange(5.0)[:, None], np.arange(5)[:, None] * np.array([[0, 3, 4]])):
        xy, explained = principal_plane(x)
        np.testing.assert_allclose(np.diff(xy[:, 0]), np.linalg.norm(x[1] - x[0]), atol=1e-6)
        np.testing.assert_allclose([*xy[:, 1], *explained], [0] * 5 + [1, 0], atol=1e-6)


def clusters(count=20, width=8, seed=0):
    """Three bundles of directions, whose lengths say nothing."""
    rng, labels = np.random.default_rng(seed), np.arange(3 * count) % 3
    x = rng.normal(size=(3, width))[labels] + 0.05 * rng.normal(size=(3 * count, width))
    return x * rng.uniform(0.1, 10, (len(x), 1)), labels


def test_neighbours_stay_neighbours():
    x, labels = clusters()
    xy = neighbour_plane(x)
    assert xy.shape == (60, 2) and xy.dtype == np.float32
    gaps = np.linalg.norm(xy[:, None] - xy, axis=2)
    np.fill_diagonal(gaps, np.inf)
    np.testing.assert_array_equal(labels[gaps.argmin(1)], labels)


def test_the_seed_decides():
    x, _ = clusters()
    np.testing.assert_array_equal(neighbour_plane(x, seed=3), neighbour_plane(x, seed=3))


@pytest.mark.parametrize(("count", "width"), [(3, 1), (3, 5), (4, 2), (5, 1), (7, 30), (92, 3)])
def test_few_pictures_and_narrow_features(count, width):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xy = neighbour_plane(drawn(count, width) - 3)
    assert xy.shape == (count, 2) and np.isfinite(xy).all() and xy.any()


@pytest.mark.parametrize("lengths", [np.ones(5), np.geomspace(1e-3, 1e3, 5), np.zeros(5)])
def test_features_of_the_same_direction_are_one_point(lengths):
    x = np.random.default_rng(0).normal(size=(1, 9)) * lengths[:, None]
    np.testing.assert_array_equal(neighbour_plane(x), np.zeros((5, 2)))


def test_zeros_and_copies_are_no_trouble():
    x, _ = clusters()
    x[:4] = 0
    x[10:30] = x[10]
    assert np.isfinite(neighbour_plane(x)).all()


@pytest.mark.parametrize("plane", [principal_plane, neighbour_plane])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros(5), "must be"),
        (np.zeros((0, 4)), "not empty"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf), "infinite"),
        (np.full((4, 4), "a"), "real numbers"),
    ],
)
def test_what_is_no_set_of_features(plane, x, words):
    with pytest.raises(InputError, match=words):
        plane(x)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_for_neighbours(count):
    with pytest.raises(InputError, match=f"at least 3 pictures, not {count}"):
        neighbour_plane(drawn(count, 4))


def test_a_seed_that_is_none():
    with pytest.raises(InputError, match="seed must be at least 0, not -1"):
        neighbour_plane(drawn(5, 4), seed=-1)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ModuleNotFoundError, match=r"imagegpt\[probe\]"):
        neighbour_plane(drawn(5, 4))
