"""Linear probes against scikit-learn's, and against the minimum by its definition."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from imagegpt import metrics
from imagegpt.errors import InputError
from imagegpt.probe import samples, solvers
from imagegpt.probe.linear import NEVER, STRENGTHS, LinearProbe, fit_logistic
from reference.probing import logistic_objective

SOLVERS = ("lbfgs", "sgd", "sklearn")


def digits():
    x, y = load_digits(return_X_y=True)
    return x[:1200].astype(np.float32), y[:1200], x[1200:].astype(np.float32), y[1200:]


def correlated(classes=4, count=1500, width=30, seed=0):
    """Few directions hold most of the variance, as in the features of a network."""
    x, y = make_classification(
        2 * count, width, n_informative=8, n_redundant=width - 12, n_classes=classes, class_sep=0.8, random_state=seed
    )
    x = (10 + x * np.geomspace(0.01, 30, width)).astype(np.float32)
    return x[:count], y[:count], x[count:], y[count:]


SETS = {"digits": digits, "correlated": correlated, "two classes": lambda: correlated(2)}


@pytest.fixture(scope="module", params=SETS)
def data(request):
    return SETS[request.param]()


def oracle(x, y, strength):
    """scikit-learn's own, in float64 and to the end."""
    classes = len(np.unique(y))
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = LogisticRegression(C=(2 if classes == 2 else 1) / (strength * len(y)), max_iter=5000, tol=1e-7)
    model.fit(scaler.transform(x.astype(np.float64)), y)
    return lambda x: model.predict_proba(scaler.transform(x.astype(np.float64)))


def accuracy(scores, y):
    return (scores.argmax(1) == y).mean()


# --- the same as scikit-learn


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("strength", [3e-2, 1e-3])
def test_every_solver_is_as_good_as_scikit_learn(data, solver, strength):
    x, y, x_test, y_test = data
    expected = oracle(x, y, strength)(x_test)
    fit = fit_logistic(x, y, len(np.unique(y)), solver=solver, strength=strength)
    assert fit.converged
    assert (fit.solver, fit.strength, fit.held_out) == (solver, strength, {})
    assert abs(accuracy(fit.probe.scores(x_test), y_test) - accuracy(expected, y_test)) <= 0.002 + 1e-9
    # the probabilities too are about the same, but for a few odd pictures where a solver stops early
    apart = np.abs(fit.probe.probabilities(x_test) - expected)
    assert np.quantile(apart, 0.98) < {"lbfgs": 1e-3, "sgd": 5e-2, "sklearn": 1e-2}[solver]
    assert apart.max() < 5e-3 or solver != "lbfgs"


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_neighbour_of_the_solution_is_better(solver):
    x, y, _, _ = correlated(3, 200, 16)
    fit = fit_logistic(x, y, 3, solver=solver, strength=0.01)
    z = (x.astype(np.float64) - fit.probe.mean_D) / fit.probe.scale_D
    weight, bias = fit.probe.weight_CD.astype(np.float64), fit.probe.bias_C.astype(np.float64)
    least = logistic_objective(weight, bias, z, y, 0.01)
    rng = np.random.default_rng(0)
    for size in (0.3, 0.03):
        for _ in range(5):
            dw, db = size * rng.normal(size=weight.shape), size * rng.normal(size=bias.shape)
            assert logistic_objective(weight + dw, bias + db, z, y, 0.01) > least
    # the derivative vanishes along any direction
    dw, db = rng.normal(size=weight.shape), rng.normal(size=bias.shape)
    ahead, behind = (logistic_objective(weight + h * dw, bias + h * db, z, y, 0.01) for h in (1e-4, -1e-4))
    assert abs(ahead - behind) / 2e-4 < {"lbfgs": 1e-3, "sgd": 1e-2, "sklearn": 1e-2}[solver]


def test_the_strength_chosen_is_about_as_good_as_any(data):
    x, y, x_test, y_test = data
    classes = len(np.unique(y))
    fit = fit_logistic(x, y, classes)
    assert set(fit.held_out) == set(STRENGTHS)
    assert fit.held_out[fit.strength] == max(fit.held_out.values())
    every = [accuracy(fit_logistic(x, y, classes, strength=s).probe.scores(x_test), y_test) for s in STRENGTHS]
    assert accuracy(fit.probe.scores(x_test), y_test) > max(every) - 0.02


def test_of_equally_good_strengths_the_strongest_is_taken():
    x = np.concatenate([np.full((20, 2), -1.0), np.full((20, 2), 1.0)])
    fit = fit_logistic(x, np.repeat([0, 1], 20), 2, strengths=[1e-3, 0.1, 0.01])
    assert fit.held_out == {1e-3: 1.0, 0.01: 1.0, 0.1: 1.0}
    assert fit.strength == 0.1


def test_a_single_strength_is_not_tried():
    x, y, _, _ = digits()
    seen = []
    fit = fit_logistic(x, y, 10, strengths=[0.1], progress=lambda *told: seen.append(told))
    assert (fit.strength, fit.held_out, seen) == (0.1, {}, [(1, 1)])


@pytest.mark.parametrize(("options", "total"), [({}, 3), ({"folds": 3}, 7)])
def test_progress_counts_fits(options, total):
    x, y, _, _ = digits()
    seen = []
    fit_logistic(x, y, 10, strengths=[0.1, 0.01], progress=lambda *told: seen.append(told), **options)
    assert seen == [(number, total) for number in range(1, total + 1)]


# --- what is standardised


def test_features_are_standardised_as_scikit_learn_does():
    x, y, _, _ = correlated()
    x[:, 3] = 7.7  # constant
    x[:, 4] = 1e6 + np.arange(len(x)) % 2  # a large mean
    probe = fit_logistic(x, y, 4, strength=0.1).probe
    scaler = StandardScaler().fit(x.astype(np.float64))
    np.testing.assert_allclose(probe.mean_D, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(probe.scale_D, scaler.scale_, rtol=1e-5)
    assert (probe.scale_D[3], probe.scale_D[4]) == (1, 0.5)
    assert not probe.weight_CD[:, 3].any()


def test_without_standardising_features_are_taken_as_they_are():
    x, y, x_test, _ = digits()
    probe = fit_logistic(x / 16, y, 10, strength=1e-3, standardize=False).probe
    assert not probe.mean_D.any()
    assert (probe.scale_D == 1).all()
    model = LogisticRegression(C=1 / (1e-3 * len(y)), max_iter=5000, tol=1e-7).fit(x / 16, y)
    np.testing.assert_allclose(probe.probabilities(x_test / 16), model.predict_proba(x_test / 16), atol=2e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scale_and_shift_of_features_make_no_difference(solver):
    x, y, x_test, _ = digits()
    change = np.geomspace(1e-3, 1e3, 64).astype(np.float32)
    plain = fit_logistic(x, y, 10, solver=solver, strength=0.01).probe
    changed = fit_logistic(x * change + 3 * change, y, 10, solver=solver, strength=0.01).probe
    other = changed.probabilities(x_test * change + 3 * change)
    np.testing.assert_allclose(other, plain.probabilities(x_test), atol=5e-3)


# --- determinism, memory


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_makes_the_same_probe(monkeypatch, solver):
    monkeypatch.setattr(solvers, "STEPS", 50)
    x, y, _, _ = correlated(3, 1500, 16)
    options = {"solver": solver, "strengths": [0.1, 0.01], "max_iter": 5 if solver == "sgd" else None}
    first, again, other = (fit_logistic(x, y, 3, seed=seed, **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.probe.weight_CD, again.probe.weight_CD)
    assert first.held_out == again.held_out
    assert first.held_out != other.held_out
    if solver == "sgd":
        assert not np.array_equal(first.probe.weight_CD, other.probe.weight_CD)


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_features_on_the_disk_are_read_in_chunks(tmp_path, monkeypatch, solver):
    monkeypatch.setattr(solvers, "STEPS", 200)
    x, y, x_test, _ = digits()
    np.save(tmp_path / "x.npy", x)
    plain = fit_logistic(x, y, 10, solver=solver, strengths=[0.1, 0.01])
    monkeypatch.setattr(samples, "KEPT", 0)
    monkeypatch.setattr(metrics, "CHUNK", 64 * 100)
    mapped = fit_logistic(np.load(tmp_path / "x.npy", mmap_mode="r"), y, 10, solver=solver, strengths=[0.1, 0.01])
    assert mapped.held_out == pytest.approx(plain.held_out, abs=0.01)
    # L-BFGS ends where its steps get small, and sums in another order end it elsewhere, by machine.
    np.testing.assert_allclose(mapped.probe.scores(x_test), plain.probe.scores(x_test), atol=0.1)


def test_auto_takes_sgd_for_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(solvers, "STEPS", 20)
    x, y, _, _ = digits()
    assert fit_logistic(x, y, 10, strength=0.1).solver == "lbfgs"
    monkeypatch.setattr(samples, "KEPT", x.nbytes - 1)
    assert fit_logistic(x, y, 10, strength=0.1).solver == "sgd"


def test_scores_do_not_depend_on_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    probe = LinearProbe(*(rng.uniform(1, 2, size).astype(np.float32) for size in (5, 5, (3, 5), 3)))
    x = rng.normal(size=(50, 5))
    whole = probe.scores(x)
    monkeypatch.setattr(metrics, "CHUNK", 35)
    np.testing.assert_allclose(probe.scores(x), whole, rtol=1e-6)
    np.testing.assert_allclose(whole, (x - probe.mean_D) / probe.scale_D @ probe.weight_CD.T + probe.bias_C, rtol=1e-4)


@given(st.integers(0, 1000), st.floats(0, 300))
def test_probabilities_are_the_softmax_of_scores(seed, size):
    rng = np.random.default_rng(seed)
    weight = (size * rng.normal(size=(4, 3))).astype(np.float32)
    probe = LinearProbe(np.zeros(3, np.float32), np.ones(3, np.float32), weight, np.zeros(4, np.float32))
    x = rng.normal(size=(6, 3))
    np.testing.assert_allclose(probe.probabilities(x), softmax(probe.scores(x).astype(np.float64), 1), atol=1e-5)


# --- labels


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_class_without_pictures_is_never_predicted(solver):
    x, y, x_test, _ = digits()
    kept = ~np.isin(y, [0, 4, 9])
    fit = fit_logistic(x[kept], y[kept], 11, solver=solver, strengths=[0.1, 0.01])
    probabilities = fit.probe.probabilities(x_test)
    assert probabilities.shape == (len(x_test), 11)
    assert not probabilities[:, [0, 4, 9, 10]].any()
    assert (fit.probe.bias_C[[0, 4, 9, 10]] == NEVER).all()
    gapless = fit_logistic(x[kept], np.unique(y[kept], return_inverse=True)[1], 7, solver=solver, strengths=[0.1, 0.01])
    np.testing.assert_allclose(probabilities[:, [1, 2, 3, 5, 6, 7, 8]], gapless.probe.probabilities(x_test), atol=1e-6)


def test_integers_of_any_type_are_features_and_labels():
    x, y, _, _ = digits()
    plain = fit_logistic(x, y, 10, strength=0.1).probe
    other = fit_logistic(x.astype(np.uint8), y.astype(np.uint8), 10, strength=0.1).probe
    np.testing.assert_allclose(other.weight_CD, plain.weight_CD, atol=1e-6)


# --- refusals


def small(**changes):
    given = {"x_ND": np.random.default_rng(0).normal(size=(20, 3)), "y_N": np.arange(20) % 2, "classes": 2}
    return {**given, **changes}


BAD = [
    ({"x_ND": np.full((20, 3), np.nan)}, "NaN or infinite"),
    ({"x_ND": np.where(np.arange(60).reshape(20, 3) == 17, np.inf, 0.0)}, "NaN or infinite"),
    ({"x_ND": np.zeros(20)}, r"\(pictures, width\)"),
    ({"x_ND": np.zeros((0, 3))}, "not empty"),
    ({"x_ND": np.full((20, 3), "a")}, "real numbers"),
    ({"y_N": np.zeros(20, int)}, "All 20 pictures are of class 0"),
    ({"y_N": np.arange(19) % 2}, "one label for each of 20"),
    ({"y_N": np.arange(20) % 3}, "0 to 1, not 0 to 2"),
    ({"y_N": np.arange(20) % 2 - 1}, "0 to 1, not -1 to 0"),
    ({"y_N": np.arange(20) % 2 / 1}, "integers"),
    ({"solver": "newton"}, "solver must be one of auto, lbfgs, sgd, sklearn"),
    ({"strength": 0.0}, "positive"),
    ({"strength": float("nan")}, "positive"),
    ({"strengths": []}, "not none"),
    ({"held_out": 0.0}, "between 0 and 1"),
    ({"held_out": 1.0}, "between 0 and 1"),
    ({"folds": 1}, "1 folds"),
    ({"folds": 11}, "one class has 10"),
    ({"device": "nowhere"}, "nowhere"),
    ({"max_iter": 0}, "max_iter must be at least 1"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"x_ND": np.eye(2), "y_N": np.arange(2)}, "give a strength"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_what_can_not_be_fitted_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        fit_logistic(**small(**changes))


def test_features_of_another_width_are_refused():
    probe = fit_logistic(**small(), strength=0.1).probe
    with pytest.raises(InputError, match="reads 3 features a picture, not 4"):
        probe.scores(np.zeros((2, 4)))
    with pytest.raises(InputError, match="NaN"):
        probe.scores(np.full((2, 3), np.nan))


def test_only_the_solver_of_scikit_learn_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    assert fit_logistic(**small(), strength=0.1).converged
    with pytest.raises(ModuleNotFoundError, match=r"imagegpt\[probe\]"):
        fit_logistic(**small(), solver="sklearn")


@pytest.mark.parametrize("solver", SOLVERS)
def test_too_few_iterations_are_told_without_a_warning(monkeypatch, solver):
    monkeypatch.setattr(solvers, "STEPS", 1)
    x, y, _, _ = correlated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_logistic(x, y, 4, solver=solver, strengths=[1e-4, 1e-6], max_iter=1)
    assert (fit.converged, fit.iterations) == (False, 2 if solver == "sgd" else 1)  # an epoch has two batches
