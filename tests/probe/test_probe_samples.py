"""What is held out, and how rows are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagegpt import metrics
from imagegpt.errors import InputError
from imagegpt.probe import samples
from imagegpt.probe.samples import Rows, folds_of, hold_out, moments

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)


@given(LABELS, st.floats(0.05, 0.6), st.integers(0, 5))
def test_of_each_class_a_part_is_held_out_and_one_picture_stays(y, part, seed):
    counts = np.bincount(y)
    if counts.max() < 2:
        return
    [(fit, held)] = hold_out(y, part, seed)
    assert sorted([*fit, *held]) == list(range(len(y)))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(held) > 0).all()
    for label, count in enumerate(counts):
        out = int((y[held] == label).sum())
        assert out == (min(max(1, round(part * count)), count - 1) if count else 0)


@given(LABELS, st.integers(2, 6), st.integers(0, 5))
def test_each_picture_is_held_out_by_one_fold(y, folds, seed):
    counts = np.bincount(y)[np.unique(y)]
    if counts.min() < folds:
        with pytest.raises(InputError, match=f"{folds} folds"):
            folds_of(y, folds, seed)
        return
    splits = folds_of(y, folds, seed)
    assert sorted(np.concatenate([held for _, held in splits])) == list(range(len(y)))
    for fit, held in splits:
        assert sorted([*fit, *held]) == list(range(len(y)))
        for label in np.unique(y):
            share = (y == label).sum() / folds
            assert int(share) <= (y[held] == label).sum() <= -int(-share // 1)


@pytest.mark.parametrize("split", [lambda y, seed: hold_out(y, 0.3, seed), lambda y, seed: folds_of(y, 3, seed)])
def test_what_is_held_out_is_random_by_the_seed(split):
    y = np.arange(60) % 3
    first, again, other = (split(y, seed)[0].held for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # every picture has its chance
    assert len(np.unique(np.concatenate([split(y, seed)[0].held for seed in range(60)]))) == 60


def test_moments_are_those_of_the_rows_asked_for(monkeypatch):
    rng = np.random.default_rng(0)
    x = (1e4 + rng.normal(size=(200, 4)) * [1, 1e-2, 100, 0]).astype(np.float32)
    index = np.flatnonzero(rng.random(200) < 0.5)
    expected = x[index].astype(np.float64)
    monkeypatch.setattr(metrics, "CHUNK", 4 * 7)
    mean, scale = moments(x, index)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-7)
    np.testing.assert_allclose(scale[:3], expected.std(0)[:3], rtol=1e-6)
    assert scale[3] == 1


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_rows_are_the_same_however_they_are_read(monkeypatch, kept):
    monkeypatch.setattr(samples, "KEPT", kept)
    monkeypatch.setattr(metrics, "CHUNK", 30)
    rng = np.random.default_rng(0)
    x, y, index = rng.normal(size=(50, 3)) * 5 + 2, np.arange(50) % 4, np.arange(0, 50, 2)
    rows = Rows(x, y[index], index, standardize=True, device=torch.device("cpu"))
    read = torch.cat([part for part, _ in rows.passes()]).numpy()
    chosen = x[index]
    np.testing.assert_allclose(read, (chosen - chosen.mean(0)) / chosen.std(0), atol=1e-5)
    np.testing.assert_array_equal(torch.cat([labels for _, labels in rows.passes()]), y[index])
    features, labels = rows.batch(np.array([1, 4, 24]))
    np.testing.assert_array_equal(features, read[[1, 4, 24]])
    np.testing.assert_array_equal(labels, y[index][[1, 4, 24]])
