"""A study's curve, written by the study itself and read back; and files that are no curve."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.errors import InputError
from imagegpt.feature_file import Features
from imagegpt.probe.curve_file import CURVE, METRICS, ROW, read_curve
from imagegpt.probe.study import Study

FACTS = {"model": "abc", "palette": "def", "pool": "mean", "data": "noise"}
OPTIONS = {"strength": 0.1, "device": "cpu", "seed": 1}


def study(out, seed=0, classes=3, options=OPTIONS, **more):
    rng = np.random.default_rng(seed)
    sides = []
    for count in (60, 30):
        labels = np.arange(count) % classes
        layers = {layer: rng.normal(size=(count, 4)).astype(np.float32) + labels[:, None] for layer in (0, 1, 2)}
        sides.append(Features(layers, np.arange(count), labels, FACTS))
    return Study(*sides, out, "nano", options=options, **more)


def finished(made):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no matplotlib, no pictures
        return made.curve()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    pixels = tuple(np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32) for count in (60, 30))
    finished(study(out, pixels=pixels, concatenations=[[0, 2]]))
    return out


@pytest.fixture
def told(folder):
    return json.loads((folder / CURVE).read_text())


@pytest.fixture
def write(tmp_path):
    def write(record):
        path = tmp_path / CURVE
        path.write_text(record if isinstance(record, str) else json.dumps(record))
        return path

    return write


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize(
    "options", [OPTIONS, {"strengths": [0.1, 0.01], "seed": 0}, {**OPTIONS, "knn": False, "ridge": False}]
)
def test_a_curve_is_read_as_it_was_written(tmp_path, classes, options):
    made = study(tmp_path / "out", classes=classes, options=options, concatenations=[[0, 1]])
    curve = finished(made)
    for path in (tmp_path / "out", tmp_path / "out" / CURVE, str(tmp_path / "out")):
        found = read_curve(path)
        assert found.as_dict() == curve.as_dict()
        assert found.best.name == curve.best.name
    assert found.probes == {}
    assert isinstance(found.rows[0].layers, tuple)
    assert found.rows[0].metrics.confusion_CC.dtype == np.int64


def test_a_class_without_pictures_and_baselines(folder, told, write):
    found = read_curve(folder)
    assert [row.name for row in found.rows] == ["pixels", "0", "1", "2", "0+2"]
    assert [row.baseline for row in found.rows] == [True, False, False, False, False]
    told["rows"][1]["metrics"]["per_class"][0] = None
    assert np.isnan(read_curve(write(told)).rows[1].metrics.per_class_C[0])


def test_a_study_that_was_stopped(told, write):
    for count in range(1, 5):
        part = {**told, "rows": told["rows"][:count]}
        names = {row["name"]: row["metrics"]["top1"] for row in part["rows"][1:]}
        part["best"] = max(names, key=names.__getitem__) if names else None
        assert len(read_curve(write(part)).rows) == count


def test_there_is_no_file(tmp_path):
    for path, named in ((tmp_path, tmp_path / CURVE), (tmp_path / "a.json", tmp_path / "a.json")):
        with pytest.raises(InputError) as error:
            read_curve(path)
        assert f"There is no {named}" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"rows": [', "[" * 100_000, "NaN,"])
def test_damaged_json(write, text):
    path = write(text)
    with pytest.raises(InputError, match="is damaged, or no JSON") as error:
        read_curve(path)
    assert str(path) in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / CURVE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no JSON"):
        read_curve(tmp_path)


@pytest.mark.parametrize("record", [[], {}, None, 3, {"rows": 3}, {"rows": []}, {"rows": {}}])
def test_other_json(write, record):
    with pytest.raises(InputError, match="is no curve of a probe study"):
        read_curve(write(record))


def refused(path):
    with pytest.raises(InputError, match="is damaged") as error:
        read_curve(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ROW)
def test_a_row_lacks_a_value(told, write, name):
    del told["rows"][2][name]
    assert f"row 2 lacks '{name}'" in refused(write(told))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_lack_a_value(told, write, name):
    del told["rows"][2]["metrics"][name]
    assert f"row 2, metrics lacks '{name}'" in refused(write(told))


WRONG = {
    "name": [3, None],
    "layers": ["0", [0.5], [-1], ["a"], [True], None],
    "solver": [0],
    "strength": ["0.1", -1, True, None, float("nan"), float("inf"), 10**400],
    "held_out": [[], {"a": 0.5}, {"0.1": 2}, {"0.1": "1"}, {"nan": 0.5}, None],
    "converged": [1, None],
    "metrics": [None, [], 3],
    "knn": [1.1, -0.1, "1", True],
    "ridge": [1.1, [0.5]],
    "ridge_strength": [-1, "a"],
    "seconds": [-1, None],
    "baseline": [0, None, True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_row_has_a_value_of_another_kind(told, write, name, value):
    told["rows"][1][name] = value
    assert "row 1" in refused(write(told))


WRONG_METRICS = {
    "count": [-1, 1.5, "3", None],
    "top1": [1.1, None, "1", float("nan")],
    "top5": [2, "1"],
    "per_class": [None, [2], ["a"], [0.5, 0.5]],
    "confusion": [None, 3, [[1]], [[1, 2], [3, 4], [5, 6]], [[0.5] * 3] * 3, [[-1] * 3] * 3, [[2**64] * 3] * 3],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_METRICS.items() for value in values]
)
def test_metrics_have_a_value_of_another_kind(told, write, name, value):
    told["rows"][1]["metrics"][name] = value
    assert "row 1" in refused(write(told))


def test_what_does_not_go_together(told, write):
    assert "has an unknown 'colour'" in refused(write({**told, "rows": [{**told["rows"][0], "colour": 1}]}))
    assert "row 0 is no table" in refused(write({**told, "rows": [3]}))
    assert "two of its rows have one name" in refused(write({**told, "rows": told["rows"] + told["rows"][:1]}))
    for best in ("pixels", "7", None, 3):
        assert f"its best row is not {best!r}" in refused(write({**told, "best": best}))


def test_messages_are_short(told, write):
    told["rows"][0]["metrics"]["confusion"] = [["a" * 1000] * 3] * 3
    assert len(refused(path := write(told))) < 200 + len(str(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.sampled_from([*ROW, *METRICS]), VALUES, st.data())
def test_any_value_is_read_or_refused(folder, tmp_path_factory, name, value, data):
    told = json.loads((folder / CURVE).read_text())
    row = told["rows"][data.draw(st.integers(0, 4))]
    (row if name in ROW else row["metrics"])[name] = value
    path = tmp_path_factory.mktemp("any") / CURVE
    path.write_text(json.dumps(told))
    try:
        read_curve(path)
    except InputError as error:
        assert str(path) in str(error)
