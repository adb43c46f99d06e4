"""Labels of DATA as a classifier numbers them."""

from __future__ import annotations

import numpy as np
import pytest

from imagegpt.data.records import Record, Source
from imagegpt.data.targets import read_targets
from imagegpt.errors import InputError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def source(labels, classes=(), labelled=True) -> Source:
    def records(start, stop):
        for number in range(start, stop):
            yield Record(f"row {number}", None, labels[number])

    return Source("birds", len(labels), records, labelled, classes)


def test_classes_are_matched_by_name():
    found = read_targets(source([0, 1, 1, 0], ("owl", "jay")), ("jay", "kite", "owl"), SINGLE)
    assert found.tolist() == [2, 0, 0, 2] and found.dtype == np.int64


@pytest.mark.parametrize("theirs", [(), ("owl", "jay", "kite")])
@pytest.mark.parametrize("ours", [("0", "1", "2"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_classes_without_names_are_matched_by_number(ours, theirs):
    assert read_targets(source([2, 0], theirs), ours, SINGLE).tolist() == [2, 0]


def test_names_of_the_model_alone_are_in_order():
    assert read_targets(source([2, 0]), ("jay", "kite", "owl"), SINGLE).tolist() == [2, 0]


def test_a_class_that_no_picture_has_need_not_be_known():
    assert read_targets(source([1, 1], ("dodo", "jay")), ("jay", "owl"), SINGLE).tolist() == [0, 0]


def test_several_labels_are_put_in_the_models_order():
    found = read_targets(source([[1, 0], [1, 1]], ("owl", "jay")), ("jay", "kite", "owl"), MULTI)
    assert found.tolist() == [[False, False, True], [True, False, True]]
    assert read_targets(source([[1, 0], [0, 1]]), ("jay", "owl"), MULTI).tolist() == [[True, False], [False, True]]


def test_numbers():
    assert read_targets(source([1, 2.5]), ("age",), REGRESSION).tolist() == [[1], [2.5]]
    assert read_targets(source([[1, 2], [3, 4.5]]), ("age", "size"), REGRESSION).tolist() == [[1, 2], [3, 4.5]]


@pytest.mark.parametrize(
    ("labels", "theirs", "problem", "words"),
    [
        ([0, 1], ("owl", "emu"), SINGLE, "pictures of the class emu, which the model does not know: it knows jay, owl"),
        ([0, 2], (), SINGLE, "pictures of the class 2, which the model does not know"),
        ([0, 2], ("owl", "jay"), SINGLE, "pictures of the class 2"),
        ([0, -1], ("owl", "jay"), SINGLE, "pictures of the class -1"),
        ([0, None], (), SINGLE, "Record 1 has no label"),
        ([0.0, np.nan], (), SINGLE, "record 1 has the label nan"),
        ([0.5, 1.0], (), SINGLE, "a label is no whole number"),
        ([[0, 1], [1, 0]], (), SINGLE, "a label is 2 numbers"),
        ([[0, 1], [1]], (), MULTI, "do not all have as many numbers"),
        ([[0, 1], [1, 2]], (), MULTI, "a row of 0 and 1"),
        ([[0, 1, 0]], (), MULTI, "each label is 3 numbers; the model tells 2"),
        ([[0, 1], [0, 1]], ("owl", "emu"), MULTI, "the class emu"),
        ([[1.0, np.inf]], (), REGRESSION, "record 0 has the label"),
        ([1.0], (), REGRESSION, "each label is 1 numbers; the model tells 2"),
    ],
)
def test_labels_that_it_can_not_be_judged_by(labels, theirs, problem, words):
    with pytest.raises(InputError, match=words):
        read_targets(source(labels, theirs), ("jay", "owl"), problem)


def test_no_labels():
    with pytest.raises(InputError, match=r"birds has no labels: give class folders"):
        read_targets(source([None], labelled=False), ("jay",), SINGLE)


def test_many_names_are_not_all_told():
    names = tuple(f"bird {number}" for number in range(40))
    with pytest.raises(InputError, match=r"bird 9, \.\.\.\.$"):
        read_targets(source([0], ("emu",)), names, SINGLE)
