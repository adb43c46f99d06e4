"""p-values are valid, and thresholds keep the false-positive rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.anomaly.calibration import check_rate, p_values, threshold
from imagegpt.errors import InputError

numbers = st.lists(st.integers(-5, 5), min_size=1, max_size=60)  # many are equal


@given(numbers, numbers)
def test_p_values_are_ranks(heldout, scores):
    expected = [(1 + sum(one >= score for one in heldout)) / (len(heldout) + 1) for score in scores]
    assert p_values(np.array(heldout, float), np.array(scores, float)).tolist() == pytest.approx(expected)


@given(numbers, numbers, st.floats(0.01, 0.99))
def test_flagged_is_who_has_a_p_value_of_at_most_the_rate(heldout, scores, fpr):
    held, asked = np.array(heldout, float), np.array(scores, float)
    if math.floor(fpr * (len(held) + 1) + 1e-9) == 0:
        with pytest.raises(InputError, match="held-out normal pictures or more"):
            threshold(held, fpr)
        return
    assert ((asked > threshold(held, fpr)) == (p_values(held, asked) <= fpr + 1e-9)).all()


@pytest.mark.parametrize("count", [19, 20, 99, 500, 1237])
@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.37])
def test_the_held_out_pictures_are_flagged_at_the_rate(count, fpr):
    held = np.random.default_rng(count).normal(size=count)
    flagged = (held > threshold(held, fpr)).mean()
    # A new picture counts with the held-out ones: one of N + 1, so of N they are at most two fewer.
    assert fpr - 2 / count <= flagged <= fpr


def test_half_of_one_and_the_limits_of_binary_fractions():
    held = np.arange(19.0)
    assert threshold(held, 0.05) == 18  # 0.05 x 20 is one picture, the new one
    assert threshold(np.arange(9.0), 0.3) == 6  # 0.3 x 10 is 2.9999999999999996
    assert p_values(held, np.array([18.0, 18.5])).tolist() == [0.1, 0.05]


def test_p_values_of_normal_pictures_are_uniform():
    """P(p <= a) = floor(a (N + 1)) / (N + 1), over held-out sets and pictures."""
    rng = np.random.default_rng(0)
    repeats, count = 4000, 39
    p = np.concatenate([p_values(rng.normal(size=count), rng.normal(size=5)) for _ in range(repeats)])
    for a in (0.025, 0.05, 0.1, 0.5, 0.9):
        # Five pictures share a held-out set, so deviations are up to five times those of independent ones in square.
        assert (p <= a + 1e-9).mean() == pytest.approx(a, abs=5 * math.sqrt(a * (1 - a) / repeats))


def test_p_values_of_equal_scores_are_large():
    rng = np.random.default_rng(0)
    p = np.concatenate([p_values(*rng.integers(0, 3, (2, 50)).astype(float)) for _ in range(500)])
    for a in (0.1, 0.3, 0.6):
        assert (p <= a).mean() <= a


def test_p_values_without_end():
    assert p_values(np.array([0.0, 1.0]), np.array([np.inf, -np.inf])).tolist() == [1 / 3, 1]


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 1.5, math.nan])
def test_rates_out_of_range(fpr):
    with pytest.raises(InputError, match="above 0 and below 1"):
        check_rate(fpr)
    with pytest.raises(InputError, match="above 0 and below 1"):
        threshold(np.arange(100.0), fpr)


def test_too_few_are_told_how_many_it_takes():
    with pytest.raises(InputError, match=r"0\.05 needs 19 held-out normal pictures or more, and there are 18"):
        check_rate(0.05, 18)
    check_rate(0.05, 19)
    with pytest.raises(InputError, match=r"0\.001 needs 999"):
        check_rate(0.001, 19)
