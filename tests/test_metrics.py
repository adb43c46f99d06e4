"""Measures of classifiers against loops and scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    top_k_accuracy_score,
)

from imagegpt import metrics
from imagegpt.errors import InputError
from imagegpt.metrics import Metrics, evaluate
from reference import probing


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 30), st.booleans())
def test_all_numbers_are_those_of_the_loops(seed, classes, count, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (count, classes)).astype(float) if ties else rng.normal(size=(count, classes))
    y = rng.integers(0, classes, count)
    found = evaluate(scores, y, classes)
    assert found.count == count
    assert found.confusion_CC.tolist() == probing.confusion(scores, y, classes)
    assert found.top1 == pytest.approx(probing.top(scores, y, 1))
    assert found.top1 == pytest.approx(found.confusion_CC.trace() / count)
    if classes < 6:
        assert found.top5 is None
    else:
        assert found.top5 == pytest.approx(probing.top(scores, y, 5))
    for label in range(classes):
        of_class = y == label
        expected = (scores.argmax(1)[of_class] == label).mean() if of_class.any() else np.nan
        np.testing.assert_allclose(found.per_class_C[label], expected)


def test_they_are_scikit_learns():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(500, 8)), rng.integers(0, 8, 500)
    found = evaluate(scores, y, 8)
    np.testing.assert_array_equal(found.confusion_CC, confusion_matrix(y, scores.argmax(1)))
    assert found.top1 == pytest.approx(accuracy_score(y, scores.argmax(1)))
    assert found.top5 == pytest.approx(top_k_accuracy_score(y, scores, k=5))


def test_chunks_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(50, 8)), rng.integers(0, 8, 50)
    whole = evaluate(scores, y, 8).as_dict()
    monkeypatch.setattr(metrics, "CHUNK", 60)
    assert evaluate(scores, y, 8).as_dict() == whole


def test_they_go_through_json():
    scores, y = np.eye(7)[[0, 1, 1, 6]], np.array([0, 1, 2, 6])
    told = evaluate(scores, y, 7).as_dict()
    again = Metrics.from_dict(json.loads(json.dumps(told, allow_nan=False)))
    assert again.as_dict() == told
    assert told["per_class"] == [1.0, 1.0, 0.0, None, None, None, 1.0]
    assert (told["top1"], told["top5"], told["count"]) == (0.75, 1.0, 4)


@pytest.mark.parametrize(
    ("scores", "y", "message"),
    [
        (np.zeros((2, 3)), [0, 3], "0 to 2, not 0 to 3"),
        (np.zeros((2, 3)), [-1, 0], "0 to 2, not -1 to 0"),
        (np.zeros((2, 3)), [0], "one label for each of 2"),
        (np.zeros((2, 4)), [0, 1], "each of 3 classes, not 4"),
        (np.zeros((0, 3)), [], "not empty"),
        (np.full((2, 3), np.nan), [0, 1], "NaN"),
    ],
)
def test_what_can_not_be_measured_is_refused(scores, y, message):
    with pytest.raises(InputError, match=message):
        evaluate(scores, np.array(y), 3)


def probabilities(seed, count, classes):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count)


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 40), st.integers(1, 20))
def test_calibration_is_that_of_the_loop(seed, classes, count, bins):
    found, y = probabilities(seed, count, classes), np.random.default_rng(seed).integers(0, classes, count)
    expected = 0.0
    for lower in range(bins):
        inside = [row for row in range(count) if lower / bins < found[row].max() <= (lower + 1) / bins]
        if inside:
            confidence = sum(found[row].max() for row in inside) / len(inside)
            accuracy = sum(found[row].argmax() == y[row] for row in inside) / len(inside)
            expected += len(inside) / count * abs(accuracy - confidence)
    assert metrics.calibration_error(found, y, bins) == pytest.approx(expected)
    assert metrics.reliability(found, y, bins).count_M.sum() == count


def test_who_is_always_sure_and_never_right_has_the_largest_error():
    assert metrics.calibration_error(np.eye(3), np.array([1, 2, 0])) == 1
    assert metrics.calibration_error(np.eye(3), np.array([0, 1, 2])) == 0
    assert metrics.brier_score(np.eye(3), np.array([1, 2, 0])) == 2
    assert metrics.negative_log_likelihood(np.eye(3), np.array([1, 2, 0])) == pytest.approx(87.3, abs=0.1)


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 40))
def test_likelihood_and_brier_are_scikit_learns(seed, classes, count):
    found, y = probabilities(seed, count, classes), np.random.default_rng(seed).integers(0, classes, count)
    labels = list(range(classes))
    assert metrics.negative_log_likelihood(found, y) == pytest.approx(log_loss(y, found, labels=labels))
    assert metrics.brier_score(found, y) == pytest.approx(np.square(found - np.eye(classes)[y]).sum(1).mean())


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_many_labels_are_measured_as_by_scikit_learn(seed, classes, count, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (count, classes)) / 2 if ties else rng.random((count, classes))
    truth = rng.integers(0, 2, (count, classes))
    found = metrics.average_precision(scores, truth)
    for label in range(classes):
        if truth[:, label].any():
            assert found[label] == pytest.approx(average_precision_score(truth[:, label], scores[:, label]))
        else:
            assert np.isnan(found[label])
    told = metrics.f1(scores >= 0.5, truth)
    assert told == pytest.approx(f1_score(truth.ravel(), (scores >= 0.5).ravel(), zero_division=0))


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 40))
def test_errors_of_numbers_are_scikit_learns(seed, width, count):
    predicted, target = np.random.default_rng(seed).normal(size=(2, count, width))
    found = metrics.errors(predicted.astype(np.float32), target)
    predicted = predicted.astype(np.float32)
    assert found["mse"] == pytest.approx(mean_squared_error(target, predicted))
    assert found["mae"] == pytest.approx(mean_absolute_error(target, predicted))
    assert found["r2"] == pytest.approx(r2_score(target, predicted))


def test_a_target_that_never_changes_has_no_r2():
    found = metrics.errors(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]))
    assert (found["mse"], found["mae"]) == (1, 1) and np.isnan(found["r2"])


@given(st.lists(st.lists(st.floats(-1000, 1000), min_size=3, max_size=3), min_size=1, max_size=5))
def test_softmax_and_sigmoid_are_scipys(rows):
    scores = np.array(rows)
    np.testing.assert_allclose(metrics.softmax(scores), special.softmax(scores, 1), atol=1e-12)
    np.testing.assert_allclose(metrics.sigmoid(scores), special.expit(scores), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.calibration_error(np.full((2, 3), 1.5), np.array([0, 1])), "0 to 1"),
        (lambda: metrics.brier_score(np.full((2, 3), np.nan), np.array([0, 1])), "0 to 1"),
        (lambda: metrics.negative_log_likelihood(np.full((2, 3), 0.3), np.array([0, 3])), "0 to 2, not 0 to 3"),
        (lambda: metrics.average_precision(np.zeros((2, 3)), np.zeros((2, 2))), "don't fit"),
        (lambda: metrics.average_precision(np.full((2, 3), np.nan), np.zeros((2, 3))), "NaN"),
        (lambda: metrics.f1(np.zeros((2, 3)), np.full((2, 3), 2)), "by 0 and 1"),
        (lambda: metrics.f1(np.full((2, 3), 0.3), np.zeros((2, 3))), "by 0 and 1"),
        (lambda: metrics.errors(np.zeros((2, 1)), np.array([[0.0], [np.inf]])), "infinite"),
        (lambda: metrics.errors(np.zeros((2, 1)), np.zeros((1, 1))), "don't fit"),
    ],
)
def test_what_is_no_probability_label_or_number_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
