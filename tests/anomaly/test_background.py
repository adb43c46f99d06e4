"""The background model of ids: sums to one, equals the slow one, and has a probability for everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.anomaly import background as module
from imagegpt.anomaly.background import Background, Counter, neighbours
from reference.neighbours import SlowBackground

GRID, COLORS = (3, 4), 5


def pictures(count, seed=0, colors=COLORS):
    """(count, 12) ids of which the lower are more frequent, so that many events come again."""
    return (np.random.default_rng(seed).random((count, 12)) ** 2 * colors).astype(np.int64)


def counted(ids, colors=COLORS, grid=GRID):
    counter = Counter(grid, colors)
    counter.add(ids)
    return counter.background()


def rows(ids):
    return ids.reshape(-1, *GRID).tolist()


def test_neighbours():
    left, above = neighbours(np.arange(6)[None], (2, 3), 9)
    assert left.tolist() == [[9, 0, 1, 9, 3, 4]] and above.tolist() == [[9, 9, 9, 0, 1, 2]]


@pytest.mark.parametrize("count", [1, 2, 30])
def test_it_equals_the_slow_one_along_whole_pictures(count):
    known, new = pictures(count), pictures(7, seed=1)
    slow = SlowBackground(rows(known), COLORS)
    for ids in (known, new):
        expected = [slow.log_likelihood(picture) for picture in rows(ids)]
        np.testing.assert_allclose(-counted(known).surprise(ids).sum(1), expected, rtol=1e-12)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 1000))
def test_whatever_the_neighbours_the_probabilities_sum_to_one(count, colors, seed):
    model = counted(pictures(count, seed, colors), colors)
    base = pictures(1, seed + 1, colors)
    for place in (0, 1, 4, 6):  # at the corner, the upper edge, the left edge, within
        ids = np.repeat(base, colors, 0)
        ids[:, place] = np.arange(colors)
        assert np.exp(-model.surprise(ids)[:, place]).sum() == pytest.approx(1, abs=1e-12)


def test_an_id_that_never_was_has_a_probability_too():
    model = counted(np.zeros((3, 12), np.int64))
    surprise = model.surprise(np.full((1, 12), 4))
    assert np.isfinite(surprise).all() and (surprise > 1).all()
    assert (model.surprise(np.zeros((1, 12), np.int64)) < 0.2).all()


def test_counting_in_batches_is_counting_at_once(monkeypatch):
    ids = pictures(40)
    at_once = counted(ids)
    counter = Counter(GRID, COLORS)
    for part in np.array_split(ids, 7):
        counter.add(part)
        counter._merge()  # as it does by itself once enough is new
    in_parts = counter.background()
    assert np.array_equal(at_once.keys_M, in_parts.keys_M) and np.array_equal(at_once.counts_M, in_parts.counts_M)
    assert at_once.counts_M.sum() == ids.size


def test_many_pictures_are_merged_on_the_way(monkeypatch):
    merges, merge = [], module._merge
    monkeypatch.setattr(module, "_merge", lambda *args: merges.append(len(args[0])) or merge(*args))
    counter = Counter((32, 32), 2)
    for _ in range(5):
        counter.add(np.zeros((600, 1024), np.int64))
    assert len(merges) == 2 and len(counter._counted[0]) == 4  # the four places with other neighbours


def test_its_own_arrays_are_all_that_it_needs():
    first, ids = counted(pictures(9)), pictures(4, 3)
    again = Background(GRID, COLORS, first.keys_M, first.counts_M.astype(np.int32))
    assert np.array_equal(first.surprise(ids), again.surprise(ids))


def test_more_normal_pictures_make_it_better():
    """Of pictures with a rule (an id is its left neighbour plus one)."""
    rng = np.random.default_rng(0)
    ids = (rng.integers(0, 5, (300, 3, 1)) + np.arange(4)).reshape(300, 12) % 5
    surprises = [counted(ids[:count]).surprise(ids[250:]).mean() for count in (2, 20, 200)]
    assert surprises[0] > surprises[1] > surprises[2]
    assert surprises[2] < 0.7  # the first id of a row is open: log 5 / 4 = 0.4
