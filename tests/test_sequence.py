from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegpt.errors import InputError
from imagegpt.sequence import flatten, prompt_length, unflatten, with_sos


def test_raster_order_is_row_by_row():
    ids_BHW = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]])
    assert flatten(ids_BHW).tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    assert unflatten(np.array([[1, 2, 3, 4, 5, 6]]), (3, 2)).tolist() == [[[1, 2], [3, 4], [5, 6]]]


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_unflatten_undoes_flatten(batch, height, width):
    ids_BHW = np.arange(batch * height * width).reshape(batch, height, width)
    flat = flatten(ids_BHW)
    assert all(
        flat[b, y * width + x] == ids_BHW[b, y, x] for b in range(batch) for y in range(height) for x in range(width)
    )
    np.testing.assert_array_equal(unflatten(flat, (height, width)), ids_BHW)


def test_with_sos_puts_the_start_token_first_and_copies():
    prompt = np.array([[1, 2], [3, 4]])
    inputs = with_sos(prompt, 9)
    assert inputs.tolist() == [[9, 1, 2], [9, 3, 4]]
    assert inputs.dtype == np.int64
    inputs[0, 1] = 5
    assert prompt.tolist() == [[1, 2], [3, 4]]


def test_with_sos_of_an_empty_prompt_is_the_start_token_alone():
    assert with_sos(np.empty((2, 0), np.int64), 9).tolist() == [[9], [9]]


@pytest.mark.parametrize(
    ("keep", "length", "given"),
    [(0, 64, 0), (0.5, 1024, 512), (0.25, 64, 16), (0.004, 64, 0), (0.01, 64, 1), (0.999, 64, 63), (0.9, 1, 0)],
)
def test_prompt_length_is_the_nearest_with_one_id_left(keep, length, given):
    assert prompt_length(keep, length) == given


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 5000))
def test_prompt_length_is_a_whole_number_that_leaves_an_id_and_is_at_most_half_an_id_off(keep, length):
    given = prompt_length(keep, length)
    assert isinstance(given, int)
    assert 0 <= given < length
    assert abs(given - keep * length) <= 0.5 or given == length - 1


@pytest.mark.parametrize("keep", [1, 1.0, -0.1, 2, float("nan"), float("inf")])
def test_a_part_that_is_none_is_an_input_error(keep):
    with pytest.raises(InputError, match="keep"):
        prompt_length(keep, 64)
