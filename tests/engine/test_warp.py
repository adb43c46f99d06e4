from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from imagegpt.engine.warp import Sampling, draw, keep_min_p, keep_top_k, keep_top_p, log_probs, softmax, uniforms
from imagegpt.errors import InputError
from reference import sampler

ALMOST_ONE = 1 - 2.0**-53  # the largest number that a generator of [0, 1) can give

shapes = st.tuples(st.integers(1, 3), st.integers(1, 12))
# Whole numbers often tie; the others rarely.
values = st.one_of(st.integers(-4, 4).map(float), st.floats(-30, 30, width=32))
logits = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=values))
temperatures = st.floats(0.05, 5)
top_ks = st.none() | st.integers(1, 15)
top_ps = st.none() | st.floats(0.01, 1)
min_ps = st.none() | st.floats(0, 1)


def random_logits(seed, rows=3, colors=11):
    return np.random.default_rng(seed).normal(0, 3, (rows, colors)).astype(np.float32)


@given(logits, temperatures, top_ks, top_ps, min_ps)
def test_probabilities_sum_to_one_and_leave_the_logits_alone(logits_BK, temperature, top_k, top_p, min_p):
    before = logits_BK.copy()
    probs_BK = Sampling(temperature, top_k, top_p, min_p).probabilities(logits_BK)
    assert probs_BK.dtype == np.float64
    assert (probs_BK >= 0).all()
    np.testing.assert_allclose(probs_BK.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(logits_BK, before)


@given(logits, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last(logits_BK, k):
    before = logits_BK.copy()
    kept_BK = keep_top_k(logits_BK.astype(np.float64), k)
    for row, kept in zip(logits_BK, kept_BK, strict=True):
        kth = sorted(row, reverse=True)[min(k, len(row)) - 1]
        assert [value if value >= kth else -np.inf for value in row] == kept.tolist()
        assert np.isfinite(kept).sum() >= min(k, len(row))
    np.testing.assert_array_equal(logits_BK, before)


@given(logits, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits_BK, p):
    probs_BK = softmax(logits_BK.astype(np.float64))
    before = probs_BK.copy()
    kept_BK = keep_top_p(probs_BK, p)
    np.testing.assert_array_equal(probs_BK, before)
    for probs, kept in zip(probs_BK, kept_BK, strict=True):
        inside, outside = probs[kept > 0], probs[kept == 0]
        assert len(inside) >= 1
        assert inside.sum() >= p - 1e-9
        assert inside.sum() - inside.min() < p + 1e-9 or len(inside) == 1
        assert outside.max(initial=0) <= inside.min()
        np.testing.assert_allclose(kept[kept > 0], inside / inside.sum(), rtol=1e-12)


def test_top_p_at_a_cumulative_sum_that_is_exactly_p():
    probs_BK = np.array([[0.125, 0.5, 0.25, 0.125]])
    assert (keep_top_p(probs_BK, 0.5) > 0).tolist() == [[False, True, False, False]]
    assert (keep_top_p(probs_BK, 0.75) > 0).tolist() == [[False, True, True, False]]
    # Of two that are equally likely, the lower id.
    assert (keep_top_p(probs_BK, 0.8) > 0).tolist() == [[True, True, True, False]]
    np.testing.assert_array_equal(keep_top_p(probs_BK, 1.0), probs_BK)


@given(logits, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(logits_BK, p):
    probs_BK = softmax(logits_BK.astype(np.float64))
    before = probs_BK.copy()
    kept_BK = keep_min_p(probs_BK, p)
    np.testing.assert_array_equal(probs_BK, before)
    for probs, kept in zip(probs_BK, kept_BK, strict=True):
        assert [value >= p * max(probs) for value in probs] == (kept > 0).tolist() or p == 0
        np.testing.assert_allclose(kept[kept > 0], probs[kept > 0] / probs[kept > 0].sum(), rtol=1e-12)


def test_min_p_at_a_ratio_that_is_exactly_p():
    probs_BK = np.array([[0.125, 0.5, 0.25, 0.125]])
    assert (keep_min_p(probs_BK, 0.5) > 0).tolist() == [[False, True, True, False]]
    assert (keep_min_p(probs_BK, 0.51) > 0).tolist() == [[False, True, False, False]]
    assert (keep_min_p(np.array([[0.4, 0.2, 0.4]]), 1) > 0).tolist() == [[True, False, True]]
    np.testing.assert_array_equal(keep_min_p(probs_BK, 0.0), probs_BK)


@given(st.integers(0, 10**6), temperatures, top_ks, top_ps, min_ps)
def test_probabilities_equal_those_of_transformers(seed, temperature, top_k, top_p, min_p):
    logits_BK = random_logits(seed)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits_BK.astype(np.float64)))
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None and top_p < 1:
        sums = scores.softmax(-1).sort(-1, descending=True).values.cumsum(-1)
        if ((sums - top_p).abs() < 1e-9).any():
            return  # on the border rounding decides
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p is not None:
        ratios = scores.softmax(-1) / scores.softmax(-1).amax(-1, keepdim=True)
        if ((ratios - min_p).abs() < 1e-9).any() and min_p < 1:
            return
        scores = MinPLogitsWarper(min_p)(None, scores)
    expected = scores.softmax(-1).numpy()
    got = Sampling(temperature, top_k, top_p, min_p).probabilities(logits_BK)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def near_a_border(logits_BK, sampling, uniform_B):
    """Whether rounding decides: what is kept, or on which side of a border a number lies."""
    loose = Sampling(sampling.temperature, sampling.top_k)
    probs_BK = -np.sort(-loose.probabilities(logits_BK), axis=1)
    borders = [probs_BK.cumsum(1) - (sampling.top_p or 9)]
    borders.append(probs_BK - (9 if sampling.min_p is None else sampling.min_p) * probs_BK.max(1, keepdims=True))
    # The likeliest is always kept; ids that tie are exactly alike in both.
    borders[1] = borders[1][:, 1:][probs_BK[:, 1:] < probs_BK[:, :1]]
    borders.append(sampling.probabilities(logits_BK).cumsum(1)[:, :-1] - uniform_B[:, None])
    return any((np.abs(border) < 1e-9).any() for border in borders)


def both_kinds(sampling, logits_BK, uniform_B):
    mine = sampling.choose(logits_BK, uniform_B)
    theirs = sampling.choose(torch.from_numpy(logits_BK), torch.from_numpy(uniform_B))
    assert (mine.dtype, theirs.dtype) == (np.int64, torch.int64)
    return mine.tolist(), theirs.tolist()


@given(logits, st.just(0.0) | temperatures, top_ks, top_ps, min_ps, st.integers(0, 10**6))
def test_arrays_and_tensors_give_the_same_ids(logits_BK, temperature, top_k, top_p, min_p, seed):
    uniform_B = np.random.default_rng(seed).random(len(logits_BK))
    sampling = Sampling(temperature, top_k, top_p, min_p)
    if temperature and near_a_border(logits_BK, sampling, uniform_B):
        return
    mine, theirs = both_kinds(sampling, logits_BK, uniform_B)
    assert mine == theirs


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_ids_that_tie_with_the_k_th_stay_in_both_kinds(k):
    logits_BK = np.array([[1, 3, 3, 0, 3, 2]], np.float32)
    expected = {1, 2, 4} if k <= 3 else {1, 2, 4, 5}
    drawn = [both_kinds(Sampling(top_k=k), logits_BK, np.array([(n + 0.5) / 40])) for n in range(40)]
    assert {mine[0] for mine, _ in drawn} == {theirs[0] for _, theirs in drawn} == expected


def test_tensors_are_drawn_from_in_float64():
    # 1e-12 beside the border: float32 would not tell the two sides apart.
    logits_BK, uniform_B = torch.zeros(2, 2), torch.tensor([0.5 - 1e-12, 0.5 + 1e-12], dtype=torch.float64)
    assert Sampling().choose(logits_BK, uniform_B).tolist() == [0, 1]
    assert Sampling().probabilities(logits_BK).dtype == torch.float64


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_tensors_of_logits_stay_as_they_were(temperature):
    logits_BK = torch.from_numpy(random_logits(0))
    before = logits_BK.clone()
    Sampling(temperature, 5, 0.9, 0.1).choose(logits_BK, torch.full((3,), 0.5, dtype=torch.float64))
    log_probs(logits_BK, torch.tensor([0, 1, 2]))
    assert torch.equal(logits_BK, before)


@given(logits, st.integers(0, 10**6))
def test_log_probs_equal_those_of_torch(logits_BK, seed):
    ids_B = np.random.default_rng(seed).integers(0, logits_BK.shape[1], len(logits_BK))
    expected = torch.from_numpy(logits_BK).double().log_softmax(1)[range(len(ids_B)), ids_B].numpy()
    mine = log_probs(logits_BK, ids_B)
    theirs = log_probs(torch.from_numpy(logits_BK), torch.from_numpy(ids_B))
    assert (mine.dtype, theirs.dtype) == (np.float64, torch.float64)
    np.testing.assert_allclose(mine, expected, atol=1e-12)
    np.testing.assert_allclose(theirs.numpy(), expected, atol=1e-12)


def test_log_probs_of_impossible_ids_are_minus_infinity_and_of_certain_ones_zero():
    logits_BK = np.array([[0, -np.inf], [0, -np.inf], [3e38, -3e38]])
    assert log_probs(logits_BK, np.array([0, 1, 1])).tolist() == [0, -np.inf, -6e38]


@given(st.integers(0, 10**6), st.just(0.0) | temperatures, top_ks, top_ps, min_ps, st.floats(0, 1 - 1e-9))
def test_choose_equals_the_slow_sampler(seed, temperature, top_k, top_p, min_p, uniform):
    logits_BK = random_logits(seed)
    chosen_B = Sampling(temperature, top_k, top_p, min_p).choose(logits_BK, np.full(3, uniform))
    slow = [sampler.choose(row.astype(float).tolist(), temperature, top_k, top_p, uniform, min_p) for row in logits_BK]
    assert chosen_B.tolist() == slow


@given(logits, top_ks, top_ps, st.sampled_from([0.0, 5e-324, 0.5, ALMOST_ONE]))
def test_draw_never_gives_an_id_of_probability_zero(logits_BK, top_k, top_p, uniform):
    probs_BK = Sampling(1.0, top_k, top_p).probabilities(logits_BK)
    probs_BK[:, 0] *= probs_BK.shape[1] == 1  # the first id is out, too, where there is another
    if not probs_BK.sum(1).all():
        return
    drawn_B = draw(probs_BK, np.full(len(probs_BK), uniform))
    assert (np.take_along_axis(probs_BK, drawn_B[:, None], 1) > 0).all()


@pytest.mark.parametrize(("uniform", "drawn"), [(0.0, 1), (ALMOST_ONE, 3)])
def test_draw_at_the_ends_skips_zeros_at_the_ends(uniform, drawn):
    assert draw(np.array([[0.0, 0.1, 0.2, 0.7, 0.0]]), np.array([uniform])).tolist() == [drawn]


def test_draw_inverts_the_distribution_function():
    probs = np.array([0.0, 0.05, 0.4, 0.0, 0.3, 0.25])
    n = 2000
    drawn = draw(np.tile(probs, (n, 1)), (np.arange(n) + 0.5) / n)
    counts = np.bincount(drawn, minlength=len(probs))
    assert np.abs(counts - n * probs).max() <= 1  # evenly spaced numbers leave nothing to chance
    assert (np.diff(drawn) >= 0).all()


def test_draws_with_our_random_numbers_follow_the_distribution():
    probs = np.array([0.02, 0.08, 0.1, 0.2, 0.25, 0.35])
    n = 20_000
    counts = np.bincount(draw(np.tile(probs, (n, 1)), uniforms(7, 0, n)), minlength=6)
    chi_square = ((counts - n * probs) ** 2 / (n * probs)).sum()
    assert chi_square < 20.5  # 5 degrees of freedom: 0.999 of all seeds are below


def test_each_row_has_its_own_uniform_number():
    logits_BK = np.log(np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]))
    assert Sampling().choose(logits_BK, np.array([0.4, 0.6, 0.6])).tolist() == [0, 1, 0]


def test_temperature_zero_takes_the_most_likely_and_of_equals_the_lowest():
    logits_BK = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 5.0]])
    assert Sampling(0).choose(logits_BK, np.full(3, ALMOST_ONE)).tolist() == [1, 0, 2]


def test_a_low_temperature_is_greedy_and_a_high_one_is_even():
    logits_BK = random_logits(0)
    cold, hot = Sampling(1e-3).probabilities(logits_BK), Sampling(1e6).probabilities(logits_BK)
    assert cold.argmax(1).tolist() == logits_BK.argmax(1).tolist()
    np.testing.assert_allclose(cold.max(1), 1)
    np.testing.assert_allclose(hot, 1 / 11, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("temperature", [1e-308, 5e-324])
def test_the_lowest_temperatures_are_greedy_too(temperature):
    logits_BK = np.array([[1.0, 20.0, 3.0], [-9.0, -20.0, -1.0]], np.float32)
    assert Sampling(temperature).choose(logits_BK, np.full(2, 0.5)).tolist() == [1, 2]


def test_large_logits_do_not_overflow():
    np.testing.assert_allclose(Sampling().probabilities(np.array([[3e38, 3e38, -3e38]], np.float32)), [[0.5, 0.5, 0]])


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_a_bad_temperature_is_an_input_error(temperature):
    with pytest.raises(InputError, match="temperature"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_bad_top_k_is_an_input_error(top_k):
    with pytest.raises(InputError, match="top_k"):
        Sampling(top_k=top_k)


@pytest.mark.parametrize("min_p", [-0.01, 1.001, float("nan")])
def test_a_bad_min_p_is_an_input_error(min_p):
    with pytest.raises(InputError, match="min_p"):
        Sampling(min_p=min_p)


@pytest.mark.parametrize("top_p", [0, -0.5, 1.001, float("nan")])
def test_a_bad_top_p_is_an_input_error(top_p):
    with pytest.raises(InputError, match="top_p"):
        Sampling(top_p=top_p)


def test_uniforms_depend_on_seed_and_sample_alone():
    noise = uniforms(5, 2, 50)
    np.testing.assert_array_equal(noise, uniforms(5, 2, 50))
    np.testing.assert_array_equal(noise[:20], uniforms(5, 2, 20))
    assert ((noise >= 0) & (noise < 1)).all()
    others = [uniforms(5, 3, 50), uniforms(6, 2, 50), uniforms(2, 5, 50), uniforms(0, 0, 50)]
    assert all((noise != other).all() for other in others)


def test_a_seed_draws_the_same_numbers_in_every_release():
    # A change here would change every picture that was made with a seed.
    expected = [0.8572859273383533, 0.9018187745966977, 0.9275903372496752, 0.6910312447882302]
    assert uniforms(3, 1, 4).tolist() == expected


def test_each_particle_has_numbers_of_its_own_and_the_first_those_of_the_sample():
    streams = [uniforms(5, sample, 50, particle) for sample in (2, 3) for particle in range(4)]
    np.testing.assert_array_equal(streams[0], uniforms(5, 2, 50))
    np.testing.assert_array_equal(streams[4], uniforms(5, 3, 50))
    assert len(np.unique(streams)) == 8 * 50
    np.testing.assert_array_equal(uniforms(5, 2, 20, 3), streams[3][:20])
    # A pair of numbers is no seed, sample and particle of another order.
    assert (uniforms(5, 1, 50, 2) != uniforms(5, 2, 50, 1)).all()


def test_particles_draw_the_same_numbers_in_every_release():
    assert uniforms(3, 1, 2, 1).tolist() == [0.7393176091588988, 0.3124515315256462]
