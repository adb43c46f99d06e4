"""What must not become an update: losses that jump or are no number, gradients that overflow."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagegpt.train.guard import FIRST_SCALE, LOWEST_SCALE, PATIENCE, WINDOW, Guard, LossScale

NAN, INF = math.nan, math.inf
NORMS = st.lists(st.sampled_from([1.0, INF, NAN]), max_size=60)


def filled(spike, loss=2.0):
    guard = Guard(spike)
    assert all(guard.trouble(loss, 1.0) is None for _ in range(WINDOW))
    return guard


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("spike", [0.0, 1.0])
def test_numbers_that_are_not_finite_are_told_from_the_first_on(spike, bad):
    assert Guard(spike).trouble(bad, 1.0) == f"the loss is {bad}"
    assert Guard(spike).trouble(2.0, bad) == f"the gradient's norm is {bad}"


def test_a_jump_above_the_latest_mean_is_told():
    guard = filled(0.5)
    assert guard.trouble(2.5, 1.0) is None  # not above
    assert guard.trouble(2.6, 1.0) == "the loss jumped to 2.600 nats/token from a mean of 2.010"
    assert guard.trouble(1.0, 1.0) is None


def test_a_jump_is_compared_with_the_latest_updates_alone():
    guard = filled(0.5, loss=9.0)
    for _ in range(WINDOW):
        assert guard.trouble(2.0, 1.0) is None
    assert guard.trouble(3.0, 1.0) is not None


def test_jumps_are_looked_for_only_after_a_whole_window_and_where_asked_for():
    early = Guard(0.5)
    assert [early.trouble(2.0, 1.0) for _ in range(WINDOW - 1)] == [None] * (WINDOW - 1)
    assert early.trouble(100.0, 1.0) is None
    assert filled(0.0).trouble(100.0, 1.0) is None


def test_what_is_told_does_not_count_among_the_latest():
    guard = filled(0.5)
    before = guard.state()
    for loss, norm in ((9.0, 1.0), (NAN, 1.0), (2.0, INF)):
        assert guard.trouble(loss, norm) is not None
    assert guard.state() == before


@example([2.0] * WINDOW, [2.0, 9.0, 2.0])
@given(st.lists(st.floats(0, 10), max_size=2 * WINDOW), st.lists(st.floats(0, 10), max_size=WINDOW))
def test_a_restored_guard_says_the_same(before, after):
    guard, other = Guard(1.0), Guard(1.0)
    for loss in before:
        guard.trouble(loss, 1.0)
    other.restore(json.loads(json.dumps(guard.state())))
    assert [guard.trouble(loss, 1.0) for loss in after] == [other.trouble(loss, 1.0) for loss in after]
    assert guard.state() == other.state()
    assert len(guard.state()) <= WINDOW


def test_without_float16_the_scale_is_one_and_nothing_overflows():
    scale = LossScale(used=False)
    assert [scale.overflowed(norm) for norm in (1.0, INF, NAN)] == [False] * 3
    assert scale.factor == 1.0


def test_an_overflow_halves_the_scale_and_leaves_the_update_out():
    scale = LossScale(used=True)
    assert scale.factor == FIRST_SCALE == 65536
    assert scale.overflowed(INF) and scale.factor == 32768
    assert scale.overflowed(NAN) and scale.factor == 16384
    assert not scale.overflowed(1.0) and scale.factor == 16384


def test_two_thousand_good_updates_in_a_row_double_the_scale():
    assert PATIENCE == 2000
    scale = LossScale(used=True)
    for _ in range(PATIENCE - 1):
        scale.overflowed(1.0)
    assert scale.factor == FIRST_SCALE
    scale.overflowed(1.0)
    assert scale.factor == 2 * FIRST_SCALE
    for _ in range(PATIENCE):
        scale.overflowed(1.0)
    assert scale.factor == 4 * FIRST_SCALE


def test_an_overflow_begins_the_count_anew():
    scale = LossScale(used=True)
    for norm in [1.0] * (PATIENCE - 1) + [INF] + [1.0] * (PATIENCE - 1):
        scale.overflowed(norm)
    assert scale.factor == FIRST_SCALE / 2
    scale.overflowed(1.0)
    assert scale.factor == FIRST_SCALE


def test_overflows_without_end_are_no_longer_left_out():
    scale = LossScale(used=True)
    told = [scale.overflowed(NAN) for _ in range(30)]
    assert told == [True] * 26 + [False] * 4  # the guard sees the update then
    assert scale.factor < LOWEST_SCALE


@given(NORMS, NORMS)
def test_a_restored_scale_goes_on_alike(before, after):
    scale, other = LossScale(used=True), LossScale(used=True)
    for norm in before:
        scale.overflowed(norm)
    other.restore(json.loads(json.dumps(scale.state())))
    assert (other.factor, other.state()) == (scale.factor, scale.state())
    assert [scale.overflowed(norm) for norm in after] == [other.overflowed(norm) for norm in after]
    assert other.state() == scale.state()


def test_a_scale_of_exactly_one_is_restored():
    scale, other = LossScale(used=True), LossScale(used=True)
    for _ in range(16):
        scale.overflowed(INF)
    assert scale.factor == 1.0
    other.restore(scale.state())
    assert other.factor == 1.0


def test_the_count_is_restored_too():
    scale, other = LossScale(used=True), LossScale(used=True)
    for _ in range(PATIENCE - 1):
        scale.overflowed(1.0)
    other.restore(scale.state())
    other.overflowed(1.0)
    assert other.factor == 2 * FIRST_SCALE


def test_scales_of_another_precision_are_left_alone():
    plain, half = LossScale(used=False), LossScale(used=True)
    half.overflowed(INF)
    half_state, plain_state = half.state(), plain.state()
    plain.restore(half_state)
    half.restore(plain_state)
    assert (plain.factor, half.factor) == (1.0, FIRST_SCALE / 2)
