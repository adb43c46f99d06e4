"""AUROC and FPR at a TPR: against scikit-learn, against all pairs, and with equal scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from imagegpt.errors import InputError
from imagegpt.metrics import auroc, fpr_at_tpr


def pairs(scores, truth):
    """The part of all pairs of a positive and a negative in which the positive is higher; a half where equal."""
    wins = [(p > n) + (p == n) / 2 for p in scores[truth] for n in scores[~truth]]
    return np.mean(wins)


def rate(scores, truth, tpr):
    """The lowest part of negatives above any threshold that finds as many positives."""
    found = [(scores[~truth] >= above).mean() for above in np.unique(scores) if (scores[truth] >= above).mean() >= tpr]
    return min(found)


samples = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({kind for _, kind in rows}) == 2
)


@given(samples, st.sampled_from([0.1, 0.5, 0.95, 1.0]))
def test_equal_scores_too(rows, tpr):
    scores, truth = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    assert auroc(scores, truth) == pytest.approx(pairs(scores, truth), abs=1e-12)
    assert auroc(scores, truth) == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=1e-12)
    assert auroc(-scores, truth) == pytest.approx(1 - auroc(scores, truth), abs=1e-12)
    assert fpr_at_tpr(scores, truth, tpr) == pytest.approx(rate(scores, truth, tpr), abs=1e-12)


@pytest.mark.parametrize("rounded", [1, 8])
def test_many(rounded):
    rng = np.random.default_rng(0)
    truth = rng.random(3000) < 0.3
    scores = (rng.normal(size=3000) + truth).round(rounded)
    assert auroc(scores, truth) == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = sklearn.roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at_tpr(scores, truth) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_infinite_scores_are_the_highest():
    scores, truth = np.array([0.0, 1.0, np.inf, np.inf]), np.array([0, 0, 1, 1])
    assert auroc(scores, truth) == 1 and fpr_at_tpr(scores, truth) == 0
    assert auroc(-scores, truth) == 0 and fpr_at_tpr(-scores, truth) == 1


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        ([1.0, 2.0], [1, 1]),
        ([1.0, 2.0], [0, 0]),
        ([], []),
        ([1.0, np.nan], [0, 1]),
        ([1.0, 2.0, 3.0], [0, 1]),
        ([[1.0], [2.0]], [0, 1]),
        ([1.0, 2.0], [0, 2]),
        (["a", "b"], [0, 1]),
    ],
)
@pytest.mark.parametrize("measure", [auroc, fpr_at_tpr])
def test_what_can_not_be_measured(measure, scores, truth):
    with pytest.raises(InputError):
        measure(np.array(scores), np.array(truth))


@pytest.mark.parametrize("tpr", [0, -1, 1.1, np.nan])
def test_rates_that_can_not_be(tpr):
    with pytest.raises(InputError, match="tpr must be"):
        fpr_at_tpr(np.array([0.0, 1.0]), np.array([0, 1]), tpr)
