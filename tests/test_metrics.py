"""Accuracies and confusions against loops and scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score

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
