"""Ridge regression against its closed form and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from imagegpt import metrics
from imagegpt.errors import InputError
from imagegpt.probe import samples
from imagegpt.probe.linear import fit_logistic
from imagegpt.probe.ridge import STRENGTHS, fit_ridge


@pytest.fixture(scope="module")
def data():
    x, y = load_digits(return_X_y=True)
    return x[:1200].astype(np.float32), y[:1200], x[1200:].astype(np.float32), y[1200:]


@pytest.mark.parametrize("strength", [1e-4, 0.1, 100])
def test_it_is_scikit_learns(data, strength):
    x, y, x_test, y_test = data
    scaler = StandardScaler().fit(x.astype(np.float64))
    z, z_test = (scaler.transform(part.astype(np.float64)) for part in (x, x_test))
    fit = fit_ridge(x, y, 10, strength=strength)
    found = fit.probe.scores(x_test)
    np.testing.assert_allclose(found, Ridge(strength * len(y)).fit(z, np.eye(10)[y]).predict(z_test), atol=2e-3)
    theirs = RidgeClassifier(strength * len(y)).fit(z, y).score(z_test, y_test)
    assert (found.argmax(1) == y_test).mean() == pytest.approx(theirs, abs=0.002)
    assert (fit.solver, fit.strength, fit.held_out) == ("ridge", strength, {})


def test_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    x, y, strength = rng.normal(size=(50, 6)) + 3, np.arange(50) % 4, 0.3
    probe = fit_ridge(x, y, 4, strength=strength).probe
    z = (x - probe.mean_D) / probe.scale_D
    rest = z @ probe.weight_CD.T + probe.bias_C - np.eye(4)[y]
    np.testing.assert_allclose(z.T @ rest / 50 + strength * probe.weight_CD.T, 0, atol=1e-6)
    np.testing.assert_allclose(rest.sum(0), 0, atol=1e-4)


def test_the_strength_is_chosen_on_the_pictures_that_the_logistic_probe_holds_out(data, monkeypatch):
    x, y, x_test, y_test = data
    fit = fit_ridge(x, y, 10, seed=3)
    assert set(fit.held_out) == set(STRENGTHS)
    assert fit.held_out[fit.strength] == max(fit.held_out.values())
    assert (fit.probe.scores(x_test).argmax(1) == y_test).mean() > 0.88
    calls = []
    original = samples.hold_out
    monkeypatch.setattr("imagegpt.probe.selection.hold_out", lambda *told: calls.append(original(*told)) or calls[-1])
    fit_ridge(x, y, 10, seed=3, strengths=[1, 2])
    fit_logistic(x, y, 10, seed=3, strengths=[1, 2])
    np.testing.assert_array_equal(calls[0][0].held, calls[1][0].held)


@pytest.mark.parametrize("fit", [fit_ridge, fit_logistic])
def test_held_out_accuracies_are_those_of_fits_to_the_rest(data, fit):
    x, y, _, _ = data
    kept = (y < 3) | (np.arange(1200) % 4 == 0)  # classes of different size
    x, y = x[kept], y[kept]
    found = fit(x, y, 10, strengths=[1e-3, 1], seed=5).held_out
    [(rest, held)] = samples.hold_out(y, 0.1, 5)
    for strength in (1e-3, 1):
        scores = fit(x[rest], y[rest], 10, strength=strength).probe.scores(x[held])
        assert found[strength] == (scores.argmax(1) == y[held]).mean()


def test_features_in_chunks_and_classes_without_pictures(data, monkeypatch):
    x, y, x_test, _ = data
    kept = y != 3
    plain = fit_ridge(x[kept], y[kept], 10, strength=0.1).probe.scores(x_test)
    assert (plain.argmax(1) != 3).all()
    monkeypatch.setattr(samples, "KEPT", 0)
    monkeypatch.setattr(metrics, "CHUNK", 64 * 90)
    np.testing.assert_allclose(fit_ridge(x[kept], y[kept], 10, strength=0.1).probe.scores(x_test), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_ND": np.full((20, 3), np.nan)}, "NaN"),
        ({"y_N": np.zeros(20, int)}, "two classes"),
        ({"strength": -1}, "positive"),
        ({"folds": 30}, "30 folds"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_what_can_not_be_fitted_is_refused(changes, message):
    given = {"x_ND": np.random.default_rng(0).normal(size=(20, 3)), "y_N": np.arange(20) % 2, "classes": 2}
    with pytest.raises(InputError, match=message):
        fit_ridge(**{**given, **changes})


def test_a_strength_that_rounding_swallows_is_told():
    """Four times the same features, more than pictures: only the strength makes the system solvable."""
    rng = np.random.default_rng(0)
    x, y = np.tile(rng.normal(size=(40, 128)).astype(np.float32), 4), np.arange(40) % 4
    assert (fit_ridge(x, y, 4, strength=STRENGTHS[0]).probe.scores(x).argmax(1) == y).all()
    with pytest.raises(InputError, match=r"strength of 1e-09 is lost .* give a larger one, such as 0.0001"):
        fit_ridge(x, y, 4, strength=1e-9)
