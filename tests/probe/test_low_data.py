"""Few labels: which pictures are drawn, and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest

from imagegpt.errors import InputError
from imagegpt.metrics import evaluate
from imagegpt.probe.linear import fit_logistic
from imagegpt.probe.low_data import LowData, low_data, subsets

STRENGTHS = [0.1, 0.01]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(240) % 3)
    means = rng.normal(size=(3, 8))
    x, x_test = (means[y] + 1.5 * rng.normal(size=(240, 8)) for _ in range(2))
    return x, y, x_test, y


def test_subsets_are_balanced_and_without_replacement():
    y = np.repeat([0, 1, 5], [4, 9, 30])
    drawn = list(subsets(y, 4, 5, 0))
    assert len(drawn) == 5
    for index in drawn:
        assert len(np.unique(index)) == 12
        assert np.bincount(y[index])[[0, 1, 5]].tolist() == [4, 4, 4]
    assert len({tuple(index) for index in drawn}) == 5


def test_subsets_depend_on_seed_size_and_number_alone():
    y = np.arange(90) % 3
    five = list(subsets(y, 4, 5, 0))
    np.testing.assert_array_equal(list(subsets(y, 4, 2, 0)), five[:2])
    assert not np.array_equal(next(subsets(y, 4, 1, 1)), five[0])
    assert len(set(five[0]) & set(next(subsets(y, 20, 1, 0)))) < 12  # no part of a larger one
    seen = np.concatenate(list(subsets(y, 4, 100, 0)))
    assert len(np.unique(seen)) == 90  # every picture has its chance


def test_each_accuracy_is_that_of_a_probe_of_its_subset(data):
    x, y, x_test, y_test = data
    seen = []
    few, more = low_data(
        *data, 3, labels_per_class=[4, 25], folds=2, strengths=STRENGTHS, progress=lambda *told: seen.append(told)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for row, count, folds in ((few, 4, 4), (more, 25, 5)):
        assert row.labels_per_class == count
        for index, accuracy, strength in zip(subsets(y, count, 2, 0), row.accuracies, row.strengths, strict=True):
            fit = fit_logistic(x[index], y[index], 3, strengths=STRENGTHS, folds=folds)
            assert accuracy == evaluate(fit.probe.scores(x_test), y_test, 3).top1
            assert strength == fit.strength
    assert more.mean > few.mean


def test_the_same_seed_makes_the_same_numbers(data):
    first, again, other = (
        low_data(*data, 3, labels_per_class=[4], folds=2, strengths=STRENGTHS, seed=seed)[0].accuracies
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_mean_and_deviation_are_those_of_a_sample():
    row = LowData(4, (0.1, 0.2, 0.6), (1.0, 1.0, 1.0))
    assert row.mean == pytest.approx(0.3)
    assert row.deviation == pytest.approx(np.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2))
    assert LowData(4, (0.1,), (1.0,)).deviation is None
    told = row.as_dict()
    assert (told["labels_per_class"], told["accuracies"]) == (4, [0.1, 0.2, 0.6])


def test_one_label_a_class_needs_a_strength(data):
    [row] = low_data(*data, 3, labels_per_class=[1], folds=3, strength=0.1)
    assert row.strengths == (0.1, 0.1, 0.1)
    with pytest.raises(InputError, match="give a strength"):
        low_data(*data, 3, labels_per_class=[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_per_class": [4, 100]}, "100 labels a class are asked for; class . has 80"),
        ({"labels_per_class": [0]}, "labels_per_class must be at least 1"),
        ({"folds": 0}, "folds must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"y_M": np.arange(240) % 4}, "0 to 2"),
    ],
)
def test_what_can_not_be_drawn_is_refused_before_anything_is_fitted(data, changes, message):
    given = dict(zip(("x_ND", "y_N", "x_MD", "y_M"), data, strict=True))
    with pytest.raises(InputError, match=message):
        low_data(**{**given, **changes}, classes=3, progress=lambda *_: pytest.fail("fitted"))
