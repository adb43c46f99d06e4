"""The nearest neighbours against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from imagegpt import metrics
from imagegpt.errors import InputError
from imagegpt.probe import neighbours
from imagegpt.probe.neighbours import knn_scores, nearest
from reference.probing import by_cosine, knn_votes


def drawn(seed, count=40, queries=15, width=4, classes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)), np.arange(count) % classes, rng.normal(size=(queries, width))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([0.05, 0.1, 1.0]))
def test_votes_are_those_of_the_loops(seed, k, temperature):
    x, y, queries = drawn(seed)
    found = knn_scores(x, y, queries, 3, k=k, temperature=temperature)
    np.testing.assert_allclose(found, knn_votes(x, y, queries, 3, k, temperature), atol=2e-4)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 39, 40, 100])
@pytest.mark.parametrize("k", [1, 10, 39])
def test_blocks_and_chunks_make_no_difference(monkeypatch, block, k):
    x, y, queries = drawn(0)
    whole = knn_scores(x, y, queries, 3, k=k)
    monkeypatch.setattr(neighbours, "BLOCK", block)
    monkeypatch.setattr(metrics, "CHUNK", 3 * (min(block, 40) + k))
    np.testing.assert_allclose(knn_scores(x, y, queries, 3, k=k), whole, atol=1e-6)


def test_lengths_do_not_count_and_zeros_are_no_trouble():
    x, y, queries = drawn(0)
    longer = x * np.geomspace(1e-3, 1e3, len(x))[:, None]
    np.testing.assert_allclose(knn_scores(longer, y, 50 * queries, 3), knn_scores(x, y, queries, 3), atol=1e-5)
    x[:2] = 0
    assert np.isfinite(knn_scores(x, y, np.zeros((2, 4)), 3)).all()


def test_a_tiny_temperature_is_the_nearest_alone():
    x, y, queries = drawn(1)
    sharp = knn_scores(x, y, queries, 3, temperature=1e-6)
    np.testing.assert_array_equal(sharp.argmax(1), knn_scores(x, y, queries, 3, k=1).argmax(1))


def test_a_class_without_pictures_has_no_votes():
    x, y, queries = drawn(0)
    found = knn_scores(x, 2 * y, queries, 6)
    assert not found[:, [1, 3, 5]].any()
    np.testing.assert_array_equal(found[:, ::2], knn_scores(x, y, queries, 3))


def test_features_on_the_disk_will_do(tmp_path):
    x, y, queries = drawn(0)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(knn_scores(mapped, y, queries, 3), knn_scores(x, y, queries, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"x_MD": np.zeros((2, 5))}, "4 wide, the others 5"),
        ({"x_MD": np.full((2, 4), np.nan)}, "NaN"),
        ({"x_ND": np.full((40, 4), np.inf)}, "infinite"),
        ({"y_N": np.zeros(40, int)}, "at least two classes"),
    ],
)
def test_what_can_not_be_compared_is_refused(changes, message):
    x, y, queries = drawn(0)
    given = {"x_ND": x, "y_N": y, "x_MD": queries, "classes": 3}
    with pytest.raises(InputError, match=message):
        knn_scores(**{**given, **changes})


# The search by itself.


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_the_nearest_are_those_of_the_loops(seed, k):
    x, _, queries = drawn(seed)
    cosine, index = nearest(queries, x, k)
    assert (cosine.dtype, index.dtype) == (np.float32, np.int64)
    assert cosine.shape == index.shape == (15, min(k, 40))
    for number, query in enumerate(queries):
        found = by_cosine(x, query)[:k]
        np.testing.assert_allclose(cosine[number], [value for value, _ in found], atol=1e-6)
        for place, (value, row) in enumerate(found):  # of nearly equal ones any may come first
            assert index[number, place] == row or abs(value - cosine[number, place]) < 1e-6


@pytest.mark.parametrize("width", [3, 40])
def test_the_nearest_are_scikit_learns(width):
    x, _, queries = drawn(0, count=300, queries=50, width=width)
    gaps, rows = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(x).kneighbors(queries)
    cosine, index = nearest(queries, x, 7)
    np.testing.assert_array_equal(index, rows)
    np.testing.assert_allclose(cosine, 1 - gaps, atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 39, 40, 100])
@pytest.mark.parametrize("k", [1, 10, 39])
def test_blocks_and_chunks_make_no_difference_to_the_nearest(monkeypatch, block, k):
    x, _, queries = drawn(0)
    whole = nearest(queries, x, k)
    monkeypatch.setattr(neighbours, "BLOCK", block)
    monkeypatch.setattr(metrics, "CHUNK", 3 * (min(block, 40) + k))
    cosine, index = nearest(queries, x, k)
    np.testing.assert_array_equal(index, whole[1])
    np.testing.assert_allclose(cosine, whole[0], atol=1e-6)


def test_a_picture_is_its_own_nearest():
    x, _, _ = drawn(0)
    cosine, index = nearest(7 * x, x, 3)
    np.testing.assert_array_equal(index[:, 0], np.arange(40))
    np.testing.assert_allclose(cosine[:, 0], 1, atol=1e-6)
    assert (np.diff(cosine) <= 0).all()


def test_zeros_are_at_a_right_angle_to_all():
    x, _, _ = drawn(0)
    cosine, index = nearest(np.zeros((2, 4)), x, 40)
    assert not cosine.any() and sorted(index[0]) == list(range(40))


def test_the_nearest_of_features_on_the_disk(tmp_path):
    x, _, _ = drawn(0)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for one, other in zip(nearest(mapped, mapped, 5), nearest(x, x, 5), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"x_MD": np.zeros((2, 5))}, "4 wide, the others 5"),
        ({"x_MD": np.zeros((0, 4))}, "not empty"),
        ({"x_MD": np.full((2, 4), np.nan)}, "NaN"),
        ({"x_ND": np.full((40, 4), np.inf)}, "infinite"),
        ({"x_ND": np.zeros(4)}, "must be"),
        ({"device": "nowhere"}, "can't be used"),
    ],
)
def test_what_has_no_neighbours_is_refused(changes, message):
    x, _, queries = drawn(0)
    with pytest.raises(InputError, match=message):
        nearest(**{"x_MD": queries, "x_ND": x, "k": 1, **changes})
