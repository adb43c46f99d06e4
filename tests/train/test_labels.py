"""Labels: what they make of the problem, how rare classes are weighed, and every bad one in one sentence."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.data.records import Record, Source
from imagegpt.data.targets import read_targets
from imagegpt.errors import InputError
from imagegpt.train.labels import MOST, MULTI, PROBLEMS, REGRESSION, SINGLE, Labels, read_labels

NAN, INF = float("nan"), float("inf")
WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6)


def source(labels, classes=(), path="ours", labelled=True) -> Source:
    def records(start, stop):
        for number in range(start, stop):
            yield Record(f"row {number}", None, labels[number])

    return Source(path, len(labels), records, labelled, tuple(classes))


def read(labels, classes=(), theirs=None, problem="auto", least=1, names=()) -> Labels:
    """Of training labels, and of validation labels, if there are any."""
    validation = None if theirs is None else source(theirs, names, "theirs")
    return read_labels(source(labels, classes), validation, problem, least)


def told(*given, **more) -> str:
    """The one sentence of a refusal, in which the file is named."""
    with warnings.catch_warnings(), pytest.raises(InputError) as refusal:
        warnings.simplefilter("error")
        read(*given, **more)
    sentence = str(refusal.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert ". " not in re.sub(r"\d\. ", "", sentence), "more than one sentence"
    return sentence


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 1, 1], SINGLE),
        ([True, False], SINGLE),
        ([[0, 1], [1, 1]], MULTI),
        ([[0.0, 1.0], [1.0, 1.0]], MULTI),
        ([[True], [False]], MULTI),
        ([0.5, 1.5], REGRESSION),
        ([0.0, 1.0], REGRESSION),  # numbers with a point are no classes
        ([[0.0, 0.5], [1.0, 1.0]], REGRESSION),
        ([[-1.0], [1.0]], REGRESSION),
    ],
)
def test_labels_tell_the_problem(labels, problem):
    assert read(labels).problem == problem


@pytest.mark.parametrize(
    ("labels", "asked"),
    [
        ([3, 1, 0, 2], "regression"),
        ([[0, 1], [1, 0]], "regression"),
        ([[2, 1], [1, 0]], "regression"),
        ([1, 0], "single"),
        ([[1], [0]], "multi"),
    ],
)
def test_the_problem_may_be_asked_for(labels, asked):
    assert read(labels, problem=asked).problem == PROBLEMS[asked]


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30).filter(lambda labels: len(set(labels)) > 1))
@pytest.mark.filterwarnings("ignore:ours. no picture")
def test_classes_are_counted_and_named_by_their_numbers(labels):
    found = read(labels)
    assert found.classes == tuple(str(number) for number in range(max(labels) + 1))
    assert found.counts_C.tolist() == [labels.count(number) for number in range(max(labels) + 1)]
    assert found.pictures == len(labels)


def test_classes_have_the_datas_names():
    assert read([1, 0], ("owl", "jay")).classes == ("owl", "jay")
    assert read([[1, 0], [0, 1]], ("owl", "jay")).classes == ("owl", "jay")
    assert read([[0.5, 1], [0, 1]], ("age", "size")).classes == ("age", "size")


def test_outputs_without_a_name_each_have_numbers():
    assert read([[1, 0, 1], [0, 1, 1]], ("owl", "jay")).classes == ("0", "1", "2")
    assert read([0.5, 1.5], ("owl", "jay")).classes == ("0",)


def test_several_labels_and_numbers_are_counted():
    several = read([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
    assert (several.counts_C.tolist(), several.pictures) == ([4, 1, 1], 4)
    numbers = read([0.5, 1.5, 2.5])
    assert (numbers.counts_C.tolist(), numbers.pictures) == ([], 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0, 1], np.array([2, 0, 1])),
        ([[0, 1], [1, 0]], np.array([[0, 1], [1, 0]], np.float32)),
        ([0.5, -1.5], np.array([[0.5], [-1.5]], np.float32)),
        ([[0.5, 1], [2, 3]], np.array([[0.5, 1], [2, 3]], np.float32)),
    ],
)
def test_targets_are_what_a_loss_takes(labels, expected):
    found = read(labels).targets(labels, np.arange(len(labels)))
    np.testing.assert_array_equal(found, expected, strict=True)


def test_targets_of_numbers_that_are_whole():
    found = read([3, 1], problem="regression").targets([3, 1], np.arange(2))
    np.testing.assert_array_equal(found, np.array([[3], [1]], np.float32), strict=True)


def validated(ours, classes, theirs, names):
    """The validation pictures' targets, as `Finetuning` reads them."""
    labels = read(ours, classes, theirs, names=names)
    return labels.as_targets(read_targets(source(theirs, names, "theirs"), labels.classes, labels.problem)).tolist()


@pytest.mark.parametrize(
    ("classes", "theirs", "names", "expected"),
    [
        (("owl", "jay", "emu"), [0, 1, 1], ("jay", "owl"), [1, 0, 0]),  # by name
        (("owl", "jay", "emu"), [0, 1, 2], ("emu", "owl", "jay"), [2, 0, 1]),
        (("owl", "jay", "emu"), [1, 1], ("dodo", "emu"), [2, 2]),  # one that no picture is of
        (("owl", "jay", "emu"), [2, 0], (), [2, 0]),  # by number
        ((), [2, 0], ("owl", "jay", "emu"), [2, 0]),
        ((), [2, 0], (), [2, 0]),
        (("0", "1", "2"), [0, 1], ("0", "2"), [0, 2]),  # folders that are numbers are names too
        (("0", "1", "2"), [1, 0], ("1", "2"), [2, 1]),
    ],
)
def test_validation_classes_are_renumbered(classes, theirs, names, expected):
    assert validated([0, 1, 2], classes, theirs, names) == expected


@given(st.permutations(range(5)), st.permutations(range(5)), st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_renumbered_classes_keep_their_names(ours, theirs, labels):
    names = ["owl", "jay", "emu", "auk", "roc"]
    classes, others = [names[at] for at in ours], [names[at] for at in theirs]
    found = validated([0, 1, 2, 3, 4], tuple(classes), labels, tuple(others))
    assert [classes[number] for number in found] == [others[number] for number in labels]


def test_several_validation_labels_are_put_in_order():
    found = validated([[1, 0], [0, 1]], ("owl", "jay"), [[1, 0], [1, 1]], ("jay", "owl"))
    assert found == [[0, 1], [1, 1]]


def weights(found, asked):
    weights_C = found.weights(asked)
    assert weights_C.dtype == np.float32
    return weights_C


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1))
@pytest.mark.filterwarnings("ignore:ours. no picture")
def test_balanced_weights_make_classes_count_the_same_and_pictures_one_on_average(labels):
    weights_C = weights(read(labels), "balanced").astype(np.float64)
    assert weights_C[labels].mean() == pytest.approx(1, rel=1e-6)
    sums = [weights_C[number] * labels.count(number) for number in set(labels)]
    assert sums == pytest.approx([len(labels) / len(sums)] * len(sums), rel=1e-6)
    assert np.isfinite(weights_C).all()


@given(WEIGHTS, st.data())
@pytest.mark.filterwarnings("ignore:ours. no picture")
def test_given_weights_keep_their_ratios_and_pictures_count_one_on_average(asked, data):
    highest = len(asked) - 1
    labels = [0, highest, *data.draw(st.lists(st.integers(0, highest), max_size=20))]
    weights_C = weights(read(labels), ",".join(map(str, asked)))
    assert weights_C.astype(np.float64)[labels].mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(weights_C / weights_C[0], np.array(asked) / asked[0], rtol=1e-5)


def test_weights_of_several_labels_are_those_of_the_positive_ones():
    found = read([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
    # The second class: three pictures have it not, one has. Of the first all have it: the smallest that may be.
    assert weights(found, "balanced").tolist() == [0.25, 3.0, 3.0]
    assert weights(found, "1, 2,0.5").tolist() == [1.0, 2.0, 0.5]


def test_weights_of_a_label_that_no_picture_has_are_finite():
    assert weights(read([[1, 0], [0, 0], [0, 0]]), "balanced").tolist() == [2.0, 2.0]


def test_nothing_is_weighed_unless_asked():
    assert read([0, 1]).weights(None) is None
    assert read([0.5, 1]).weights(None) is None


@pytest.mark.parametrize(
    ("labels", "asked", "words"),
    [
        ([0, 1], "1", "2 classes need as many numbers above 0, not '1'"),
        ([0, 1], "1,2,3", "2 classes need as many numbers above 0, not '1,2,3'"),
        ([0, 1], "1,0", "2 classes need as many numbers above 0, not '1,0'"),
        ([0, 1], "1,-2", "numbers above 0"),
        ([0, 1], "1,nan", "numbers above 0"),
        ([0, 1], "1,inf", "numbers above 0"),
        ([0, 1], "even", "give balanced, or numbers with commas between them, not 'even'"),
        ([0, 1], "1,,2", "give balanced, or numbers"),
        ([0, 1], "", "give balanced, or numbers"),
        ([0.5, 1], "balanced", "are of classes, and the labels are numbers: leave it out"),
    ],
)
def test_weights_that_can_not_be_are_told(labels, asked, words):
    with pytest.raises(InputError, match=f"^--class-weights.*{re.escape(words)}.*\\.$"):
        read(labels).weights(asked)


@pytest.mark.parametrize("problem", ["auto", "single", "multi", "regression"])
def test_data_without_labels_is_told(problem):
    words = "has no labels: give class folders, or a table with labels (--label-column)."
    labels = [[0, 1], [1, 0]] if problem == "multi" else [0, 1]
    for ours, theirs in (("birds", "jays"), ("jays", "birds")):
        made = [source(labels, (), path, labelled=path != "birds") for path in (ours, theirs)]
        with pytest.raises(InputError, match=f"^birds {re.escape(words)}$"):
            read_labels(made[0], made[1], problem, 1)


@pytest.mark.parametrize(
    ("labels", "more", "sentence"),
    [
        # One class alone.
        (
            [1, 1, 1],
            {"classes": ("owl", "jay")},
            "ours: all 3 pictures are of the class 'jay'; at least two are needed.",
        ),
        ([0], {}, "ours: all 1 pictures are of the class '0'; at least two are needed."),
        ([[1, 0], [1, 0]], {}, "ours: all pictures have the same label, [1 0]; nothing can be learnt of it."),
        ([[0, 0], [0, 0]], {}, "ours: all pictures have the same label, [0 0]; nothing can be learnt of it."),
        ([2.5, 2.5], {}, "ours: all pictures have the same label, 2.5; nothing can be learnt of it."),
        # A class with too few.
        (
            [0, 0, 1],
            {"classes": ("owl", "jay"), "least": 2},
            "ours: the class 'jay' has too few pictures, 1; each must have 2: add pictures, leave the class out, or "
            "give --least.",
        ),
        (
            [0, 1, 1, 1, 0],
            {"least": 3},
            "ours: the class '0' has too few pictures, 2; each must have 3: add pictures, leave the class out, or give "
            "--least.",
        ),
        # What is no number.
        ([0.5, NAN, 1.0], {}, "ours: record 1 has the label nan; leave it out, or mend it."),
        ([0.5, 1.0, -INF], {}, "ours: record 2 has the label -inf; leave it out, or mend it."),
        ([[0.5, 1.0], [NAN, 1.0]], {}, "ours: record 1 has the label [nan  1.]; leave it out, or mend it."),
        ([0.5, 1e39], {}, "ours: record 1 has the label 1e+39; leave it out, or mend it."),
        ([0.5, NAN], {"problem": "single"}, "ours: record 1 has the label nan; leave it out, or mend it."),
        ([[0.0, NAN]], {"problem": "multi"}, "ours: record 0 has the label [ 0. nan]; leave it out, or mend it."),
        # Missing ones, and rows of different lengths.
        ([0, None, 1], {}, "ours: Record 1 has no label, and others have; give all of them labels, or none."),
        ([[0, 1], [1]], {}, "ours: The labels from record 0 on do not all have as many numbers."),
        # Another kind than is asked for.
        (
            [0.5, 1.0],
            {"problem": "single"},
            "ours: a class must be a whole number of at least 0, and record 0 has the label 0.5.",
        ),
        ([0, 1, -1], {}, "ours: a class must be a whole number of at least 0, and record 2 has the label -1."),
        (
            [[0, 1], [1, 0]],
            {"problem": "single"},
            "ours: a class must be a whole number of at least 0, and record 0 has the label [0 1].",
        ),
        (
            [[0, 2], [1, 0]],
            {},
            "ours: a class must be a whole number of at least 0, and record 0 has the label [0 2].",
        ),
        (
            [0, 1],
            {"problem": "multi"},
            "ours: several classes a picture are a row of 0 and 1, and record 0 has the label 0.",
        ),
        (
            [[0, 1], [1, 2]],
            {"problem": "multi"},
            "ours: several classes a picture are a row of 0 and 1, and record 1 has the label [1 2].",
        ),
        # Numbers that are no class's.
        ([0, 2], {"classes": ("owl", "jay")}, "ours has the label 2, and names of 2 classes."),
        ([0, MOST], {}, f"ours has the label {MOST}: number the classes from 0 on, or name them."),
    ],
)
def test_bad_training_labels_are_told_in_one_sentence(labels, more, sentence):
    assert told(labels, **more) == sentence


@pytest.mark.parametrize(
    ("labels", "classes", "theirs", "names", "sentence"),
    [
        (
            [0, 1],
            ("owl", "jay"),
            [0, 1],
            ("owl", "emu"),
            "theirs has pictures of the class emu, which the model does not know: it knows owl, jay.",
        ),
        (
            [0, 1],
            ("owl", "jay"),
            [0, 2],
            (),
            "theirs has pictures of the class 2, which the model does not know: it knows owl, jay.",
        ),
        ([0, 1], (), [2, 0], (), "theirs has pictures of the class 2, which the model does not know: it knows 0, 1."),
        ([0, 1], (), [0, -1], (), "theirs has pictures of the class -1, which the model does not know: it knows 0, 1."),
        (
            [0, 1],
            ("0", "1"),
            [0, 1],
            ("1", "2"),
            "theirs has pictures of the class 2, which the model does not know: it knows 0, 1.",
        ),
        (
            [0, 1],
            (),
            [0.5, 1.0],
            (),
            "theirs: a label is no whole number; the model tells one class, so it must be that class's number.",
        ),
        (
            [0, 1],
            (),
            [[0, 1]],
            (),
            "theirs: a label is 2 numbers; the model tells one class, so it must be that class's number.",
        ),
        (
            [[0, 1], [1, 0]],
            (),
            [[1, 0, 1]],
            (),
            "theirs: each label is 3 numbers; the model tells 2.",
        ),
        ([[0.5, 1], [1, 0]], (), [1.0], (), "theirs: each label is 1 numbers; the model tells 2."),
        (
            [[0, 1], [1, 0]],
            (),
            [[0, 2]],
            (),
            "theirs: a picture's labels must be a row of 0 and 1, as the model tells several.",
        ),
        ([0.5, 1.0], (), [0.5, NAN], (), "theirs: record 1 has the label nan; leave it out, or mend it."),
        ([0.5, 1.0], (), [INF], (), "theirs: record 0 has the label inf; leave it out, or mend it."),
        ([0.5, 1.0], (), [1e300], (), "theirs: record 0 has the label 1e+300; leave it out, or mend it."),
        (
            [0, 1],
            (),
            [None, 1],
            (),
            "theirs: Record 0 has no label, and others have; give all of them labels, or none.",
        ),
    ],
)
def test_bad_validation_labels_are_told_in_one_sentence(labels, classes, theirs, names, sentence):
    assert told(labels, classes, theirs, names=names) == sentence


def test_validation_pictures_may_all_be_of_one_class_and_few():
    assert read([0, 1, 0, 1], (), [1], least=2).problem == SINGLE


def test_classes_without_pictures_are_told_of_and_the_others_learnt():
    with pytest.warns(UserWarning, match="^ours: no picture is of the class jay, roc, which can't be learnt.$"):
        found = read([0, 2, 0, 2], ("owl", "jay", "emu", "roc"), least=2)
    assert found.counts_C.tolist() == [2, 0, 2, 0]


def test_not_all_of_many_classes_are_told():
    with pytest.warns(UserWarning, match=r"the class 1, 2, .*, 10, \.\.\., which"):
        read([0, 50])


@pytest.mark.parametrize("least", [0, 1, 2])
def test_a_class_may_have_as_few_pictures_as_is_said(least):
    assert read([0, 0, 1, 1], least=least).counts_C.tolist() == [2, 2]
