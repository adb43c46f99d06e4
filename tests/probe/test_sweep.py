"""The sweep: its rows are what the parts say, and it goes on where it was stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from imagegpt.errors import InputError
from imagegpt.metrics import evaluate
from imagegpt.probe.linear import fit_logistic
from imagegpt.probe.neighbours import knn_scores
from imagegpt.probe.ridge import fit_ridge
from imagegpt.probe.sweep import Curve, Row, sweep

OPTIONS = {"strengths": [0.1, 0.01], "seed": 1}


@pytest.fixture(scope="module")
def data():
    """Three layers, the middle one the clearest, and pixels."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    means = rng.normal(size=(3, 6))

    def features(noise):
        return (means[y] + noise * rng.normal(size=(300, 6))).astype(np.float32)

    train = {0: features(3), 1: features(1), 2: features(2), "pixels": features(5)}
    test = {0: features(3), 1: features(1), 2: features(2), "pixels": features(5)}
    return train, y, test, y


@pytest.fixture(scope="module")
def curve(data):
    return sweep(*data, 3, concatenations=[[0, 2]], **OPTIONS)


def test_there_is_a_row_for_each_set_of_features(curve):
    assert [row.name for row in curve.rows] == ["0", "1", "2", "pixels", "0+2"]
    assert [row.layers for row in curve.rows] == [(0,), (1,), (2,), (), (0, 2)]
    assert [row.baseline for row in curve.rows] == [False, False, False, True, False]
    assert curve.best.name == "1"
    assert set(curve.probes) == {row.name for row in curve.rows}


@pytest.mark.parametrize(("number", "layers"), [(1, [1]), (3, ["pixels"]), (4, [0, 2])])
def test_a_row_is_what_its_parts_say(data, curve, number, layers):
    train, y, test, y_test = data
    x, x_test = (np.concatenate([side[layer] for layer in layers], 1) for side in (train, test))
    row = curve.rows[number]
    fit = fit_logistic(x, y, 3, **OPTIONS)
    assert (row.solver, row.strength, row.held_out, row.converged) == (fit.solver, fit.strength, fit.held_out, True)
    assert row.metrics.as_dict() == evaluate(fit.probe.scores(x_test), y_test, 3).as_dict()
    np.testing.assert_array_equal(curve.probes[row.name].probe.weight_CD, fit.probe.weight_CD)
    assert row.knn == evaluate(knn_scores(x, y, x_test, 3), y_test, 3).top1
    ridge = fit_ridge(x, y, 3, seed=1)
    assert (row.ridge, row.ridge_strength) == (evaluate(ridge.probe.scores(x_test), y_test, 3).top1, ridge.strength)
    assert row.seconds > 0


def test_a_baseline_is_never_the_best(data):
    train, y, test, y_test = data
    curve = sweep({"pixels": train[1], 0: train[0]}, y, {"pixels": test[1], 0: test[0]}, y_test, 3, **OPTIONS)
    assert curve.rows[0].metrics.top1 > curve.rows[1].metrics.top1
    assert curve.best.name == "0"
    alone = Curve(curve.rows[:1])
    assert alone.as_dict()["best"] is None
    with pytest.raises(InputError, match="among baselines"):
        _ = alone.best


def test_rows_go_through_json(curve):
    told = json.loads(json.dumps(curve.as_dict(), allow_nan=False))
    assert told["best"] == "1"
    assert [row["baseline"] for row in told["rows"]] == [False, False, False, True, False]
    again = Curve(tuple(Row.from_dict(row) for row in told["rows"]))
    assert again.as_dict() == curve.as_dict()


def test_a_sweep_goes_on_where_it_was_stopped(data, curve):
    kept, seen = {}, []

    def stop(row, fit):
        kept[row.name] = Row.from_dict(json.loads(json.dumps(row.as_dict())))
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(*data, 3, concatenations=[[0, 2]], on_row=stop, **OPTIONS)
    assert list(kept) == ["0", "1"]
    made = []
    again = sweep(
        *data,
        3,
        concatenations=[[0, 2]],
        done=kept,
        on_row=lambda row, fit: made.append((row.name, fit.strength)),
        progress=lambda *told: seen.append(told),
        **OPTIONS,
    )
    assert [name for name, _ in made] == ["2", "pixels", "0+2"]
    assert made[0][1] == again.rows[2].strength
    assert seen == [(number, 5) for number in range(1, 6)]
    assert set(again.probes) == {"2", "pixels", "0+2"}
    for row, first in zip(again.rows, curve.rows, strict=True):
        assert {**row.as_dict(), "seconds": 0} == {**first.as_dict(), "seconds": 0}


def test_neighbours_and_ridge_can_be_left_out(data):
    train, y, test, y_test = data
    [row] = sweep({1: train[1]}, y, {1: test[1]}, y_test, 3, knn=False, ridge=False, strength=0.1).rows
    assert (row.knn, row.ridge, row.ridge_strength) == (None, None, None)
    assert Row.from_dict(json.loads(json.dumps(row.as_dict()))).as_dict() == row.as_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concatenations": [[0, 7]]}, "no features of 7"),
        ({"test": {0: np.zeros((3, 6))}}, "no features of 1"),
        ({"y_test": np.arange(300) % 4}, "0 to 2, not 0 to 3"),
        ({"y_test": np.arange(299) % 3}, "one label for each"),
    ],
)
def test_what_does_not_go_together_is_refused(data, changes, message):
    given = dict(zip(("train", "y_train", "test", "y_test"), data, strict=True))
    with pytest.raises(InputError, match=message):
        sweep(**{**given, **changes}, classes=3, **OPTIONS)
