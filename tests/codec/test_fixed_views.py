"""Views that predictions are averaged over, against a loop over the places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.codec.augment import fixed_views
from imagegpt.errors import InputError


def mirrored(place: int, side: int) -> int:
    """A place beside a row of `side`, in the row: the border is a mirror's middle and not doubled."""
    if place < 0:
        return -place
    return 2 * (side - 1) - place if place >= side else place


def view(grid: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    height, width = grid.shape[:2]
    made = np.empty_like(grid)
    for y in range(height):
        for x in range(width):
            across = width - 1 - x if flip else x
            made[y, x] = grid[mirrored(y + down, height), mirrored(across + right, width)]
    return made


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["none", "flip", "ten"]), st.booleans())
def test_views_are_those_of_the_loop(height, width, views, pixels):
    grids = np.random.default_rng(0).integers(0, 99, (2, height, width, *([3] if pixels else [])))
    high, wide = height // 8, width // 8
    corners = [(-high, -wide), (-high, wide), (high, -wide), (high, wide)]
    places = [(0, 0), *(corners if views == "ten" else [])]
    flips = [False] if views == "none" else [False, True]
    expected = [[view(grid, *place, flip) for grid in grids] for place in places for flip in flips]
    found = fixed_views(grids, views)
    assert len(found) == {"none": 1, "flip": 2, "ten": 10}[views]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_other_views_are_refused():
    with pytest.raises(InputError, match="none, flip, ten, not 'five'"):
        fixed_views(np.zeros((1, 8, 8)), "five")  # pyright: ignore[reportArgumentType]
