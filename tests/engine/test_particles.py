"""Particles: exact rules of weighing and choosing, and samples that follow the exact posterior."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from decoding import TableBackend, batches_of, finish, onnx_of
from imagegpt.engine.batches import Task
from imagegpt.engine.decode import Batch, Decoding
from imagegpt.engine.particles import Particles
from imagegpt.engine.warp import Sampling

ALMOST_ONE = 1 - 2.0**-53
ALL = np.array([True])


def weighed(weights_GP, uniforms_GT=None):
    """Particles with these weights, however they are scaled."""
    weights_GP = np.atleast_2d(np.asarray(weights_GP, float))
    uniforms_GT = np.full((len(weights_GP), 1), 0.5) if uniforms_GT is None else np.asarray(uniforms_GT, float)
    particles = Particles(weights_GP.shape[1], uniforms_GT)
    with np.errstate(divide="ignore"):
        particles.weigh(np.log(weights_GP).reshape(-1), np.full(len(weights_GP), True))
    return particles


def copies_of(particles, position, allowed_G):
    """(G, P) how many rows hold each particle afterwards, and the pairs that were copied."""
    groups, size = particles.weights().shape
    sources, targets = particles.resample(position, allowed_G)
    holds = np.arange(groups * size)
    holds[targets] = holds[sources]
    return np.bincount(holds, minlength=groups * size).reshape(groups, size), sources, targets


# Weights.


@pytest.mark.parametrize(
    ("weights", "effective"),
    [([1, 1, 1, 1], 4), ([1, 0, 0, 0], 1), ([1, 1, 0, 0], 2), ([3, 1], 16 / 10), ([2, 1, 1], 16 / 6), ([7], 1)],
)
def test_effective_numbers_in_closed_form(weights, effective):
    particles = weighed(weights)
    assert particles.effective() == pytest.approx([effective])
    assert particles.least_effective == pytest.approx([effective])
    np.testing.assert_allclose(particles.weights(), [np.array(weights) / sum(weights)])


def test_weights_are_products_of_probabilities_and_the_least_number_is_kept():
    particles = Particles(2, np.full((1, 1), 0.5))
    assert particles.effective().tolist() == [2]
    particles.weigh(np.log([0.9, 0.1]), ALL)
    np.testing.assert_allclose(particles.weights(), [[0.9, 0.1]])
    particles.weigh(np.log([0.1, 0.9]), ALL)
    np.testing.assert_allclose(particles.weights(), [[0.5, 0.5]])
    assert particles.least_effective == pytest.approx([1 / 0.82])


def test_hundreds_of_improbable_ids_do_not_underflow():
    particles = Particles(2, np.full((1, 1), 0.5))
    for _ in range(1000):
        particles.weigh(np.array([-9.0, -9.001]), ALL)
    np.testing.assert_allclose(particles.weights(), [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]], rtol=1e-9)


def test_samples_have_weights_of_their_own():
    particles = weighed([[1, 3], [1, 1], [1, 0]])
    np.testing.assert_allclose(particles.weights(), [[0.25, 0.75], [0.5, 0.5], [1, 0]])
    assert particles.least_effective == pytest.approx([1.6, 2, 1])


def test_only_the_samples_that_are_named_are_weighed():
    particles = Particles(2, np.full((3, 1), 0.85))
    for weighed_G in ([True, False, False], [True, True, False]):
        particles.weigh(np.log([0.9, 0.1] * 3), np.array(weighed_G))
    np.testing.assert_allclose(particles.weights(), [[81 / 82, 1 / 82], [0.9, 0.1], [0.5, 0.5]])
    assert particles.least_effective == pytest.approx([82**2 / (81**2 + 1), 1 / 0.82, 2])
    # A sample that was never weighed is the one that it would be alone: its first row.
    assert particles.pick().tolist() == [0, 2, 4]


def test_a_sample_that_was_weighed_and_resampled_is_picked_by_its_number():
    particles = weighed([[1, 0, 0]], [[0.5, 0.9]])
    particles.resample(0, ALL)
    np.testing.assert_allclose(particles.weights(), 1 / 3)
    assert particles.pick().tolist() == [2]


# Resampling.

positive = st.floats(1e-6, 1)
groups = st.tuples(st.integers(1, 4), st.integers(2, 9))
weight_tables = groups.flatmap(lambda shape: arrays(float, shape, elements=st.just(0.0) | positive)).filter(
    lambda table: (table.sum(1) > 0).all()
)
units = st.floats(0, ALMOST_ONE) | st.just(ALMOST_ONE)


@given(weight_tables, units)
def test_systematic_resampling_gives_each_particle_its_part_to_within_one(weights_GP, uniform):
    groups, size = weights_GP.shape
    particles = weighed(weights_GP, np.full((groups, 1), uniform))
    expected = size * weights_GP / weights_GP.sum(1, keepdims=True)
    needed = particles.effective() < size / 2
    counts, sources, targets = copies_of(particles, 0, np.full(groups, True))
    assert (counts.sum(1) == size).all()  # none goes over to another sample
    assert (counts[~needed] == 1).all()
    assert (np.abs(counts - expected)[needed] < 1 + 1e-9).all()
    assert (counts[needed & (weights_GP == 0).any(1)][weights_GP[needed & (weights_GP == 0).any(1)] == 0] == 0).all()
    assert (np.array(sources) // size == np.array(targets) // size).all()
    # A survivor stays where it is: nothing is copied over it, and only survivors are copied.
    assert not set(sources) & set(targets)
    assert len(set(targets)) == len(targets)
    np.testing.assert_array_equal(np.flatnonzero(counts.reshape(-1) == 0), np.sort(targets))
    np.testing.assert_allclose(particles.weights()[needed], 1 / size)
    np.testing.assert_allclose(particles.weights()[~needed], (expected / size)[~needed])


@given(arrays(float, st.integers(3, 8), elements=positive))
def test_resampling_is_unbiased(weights):
    weights[0] += 10 * weights.sum()  # so that it is needed
    size, n = len(weights), 500
    marks = (np.arange(n)[:, None] + 0.5) / n  # evenly spaced numbers leave nothing to chance
    counts, *_ = copies_of(weighed(np.tile(weights, (n, 1)), marks), 0, np.full(n, True))
    np.testing.assert_allclose(counts.mean(0), size * weights / weights.sum(), atol=1.01 / n * size)


def test_resampling_waits_until_less_than_half_count():
    for weights, needed in [([1, 1, 0, 0], False), ([1, 0.9, 0, 0], True), ([1, 1, 1, 0], False)]:
        _, _, targets = copies_of(weighed(weights), 0, ALL)
        assert (len(targets) > 0) == needed


def test_samples_that_may_not_be_resampled_keep_their_weights():
    particles = weighed([[1, 0, 0], [1, 0, 0]])
    counts, sources, targets = copies_of(particles, 0, np.array([False, True]))
    assert counts.tolist() == [[1, 1, 1], [3, 0, 0]]
    assert (sources.tolist(), targets.tolist()) == ([3, 3], [4, 5])
    np.testing.assert_allclose(particles.weights(), [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_the_number_of_the_position_decides():
    weights = [8, 1, 1, 1, 1]  # 3.33 copies of the first, 0.42 of the others
    results = {copies_of(weighed(weights, [[0.05, 0.5, 0.95]]), t, ALL)[0].tobytes() for t in range(3)}
    assert len(results) == 3


@pytest.mark.parametrize("size", [2, 3, 7, 100])
@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE])
def test_resampling_at_the_ends_of_the_unit(size, uniform):
    weights = np.full(size, 1e-9)
    weights[1] = 1
    counts, *_ = copies_of(weighed(weights, [[uniform]]), 0, np.array([True]))
    assert counts[0, 1] >= size - 1
    assert counts.sum() == size


# Picking.


@given(weight_tables.map(lambda table: table[0]))
def test_one_is_picked_by_weight(weights):
    n = 500
    marks = (np.arange(n)[:, None] + 0.5) / n
    picked = weighed(np.tile(weights, (n, 1)), np.concatenate([1 - marks, marks], 1)).pick()
    assert (picked // len(weights) == np.arange(n)).all()  # each sample one of its own
    counts = np.bincount(picked % len(weights), minlength=len(weights))
    np.testing.assert_allclose(counts, n * weights / weights.sum(), atol=1 + 1e-6)
    assert (counts[weights == 0] == 0).all()


@pytest.mark.parametrize(("uniform", "picked"), [(0.0, 1), (ALMOST_ONE, 2)])
def test_at_the_ends_none_without_weight_is_picked(uniform, picked):
    assert weighed([0, 0.3, 0.7, 0], [[0.5, uniform]]).pick().tolist() == [picked]


# The distribution of samples, against counting out all pictures.

K, T = 3, 5
KNOWN = {1: 2, 4: 0}  # 0, 2 and 3 are unknown: 27 pictures


def batch_of(known, samples, particles, seed=0, length=T):
    known_RT = np.array([[t in known for t in range(length)]])
    ids_RT = np.array([[known.get(t, 1) for t in range(length)]])
    rng = np.random.default_rng(seed)
    rows_B, choosing = np.zeros(samples * particles, int), rng.random((samples, length))
    return Batch(ids_RT, known_RT, rows_B, rng.random((len(rows_B), length)), particles, choosing)


def distance(ids_GT, expected):
    """Total variation between what was drawn and a distribution."""
    pictures, counts = np.unique(ids_GT, axis=0, return_counts=True)
    drawn = {tuple(picture): count / len(ids_GT) for picture, count in zip(pictures.tolist(), counts, strict=True)}
    return sum(abs(drawn.get(ids, 0) - expected.get(ids, 0)) for ids in drawn.keys() | expected.keys()) / 2


def bound(samples, outcomes):
    """What the distance from one's own distribution exceeds once in 1000: its mean, and McDiarmid's inequality."""
    return np.sqrt(outcomes / samples) / 2 + np.sqrt(np.log(1000) / (2 * samples))


# Tables and known ids with which most samples are resampled on the way, so that its mistakes would show.
CASES = [(6, KNOWN), (6, {2: 1}), (6, {0: 1, 3: 2}), (7, KNOWN), (7, {0: 1, 3: 2}), (7, {1: 0, 2: 0, 3: 0})]


@pytest.mark.parametrize(("table", "known"), CASES, ids=str)
def test_many_particles_sample_the_posterior_and_one_does_not(table, known):
    samples, size = 10_000, 64
    backend = TableBackend(K, T, table, spread=2)
    posterior, forced = backend.posterior(known), backend.forced(known)
    many = finish(Decoding(backend, batch_of(known, samples, size), Sampling()))
    one = finish(Decoding(backend, batch_of(known, samples, 1), Sampling()))
    assert len({target // size for _, targets in backend.copies for target in targets}) > samples / 2
    noise = bound(samples, len(posterior))
    # Importance sampling is biased by at most 6 rho / P (Agapiou et al. 2017, theorem 2.1); far less in practice.
    rho = sum(posterior[ids] ** 2 / forced[ids] for ids in posterior)
    assert distance(one.ids(), forced) < noise
    assert distance(many.ids(), posterior) < noise + min(0.03, 6 * rho / size)
    wrong = sum(abs(posterior[ids] - forced[ids]) for ids in posterior) / 2
    assert wrong > 2 * noise + 0.06, "choose a table on which forcing is wrong"
    assert distance(many.ids(), posterior) < distance(one.ids(), posterior) / 3
    for decoding in (many, one):
        assert all((decoding.ids()[:, t] == value).all() for t, value in known.items())


def test_more_particles_come_closer():
    samples, backend = 10_000, TableBackend(K, T, 6, spread=2)
    posterior = backend.posterior(KNOWN)
    distances = [
        distance(finish(Decoding(backend, batch_of(KNOWN, samples, size), Sampling())).ids(), posterior)
        for size in (1, 2, 8, 64)
    ]
    assert distances == sorted(distances, reverse=True)


def test_particles_are_resampled_and_copied_on_the_way():
    backend = TableBackend(K, T, 6, spread=2)  # checks each copy against the ids
    decoding = finish(Decoding(backend, batch_of(KNOWN, 200, 8), Sampling()))
    assert len(backend.copies) == 1  # at 1, and not after the last unknown id
    sources, targets = backend.copies[0]
    assert len(targets) > 100
    assert (sources // 8 == targets // 8).all()
    assert (decoding.effective() >= 1).all()
    assert (decoding.effective() < 4).mean() > 0.2


def test_effective_numbers_are_those_of_the_known_ids_probabilities():
    backend = TableBackend(K, 2)
    decoding = finish(Decoding(backend, batch_of({1: 2}, 50, 4, length=2), Sampling()))
    firsts = batch_of({1: 2}, 50, 4, length=2).uniforms_BT[:, 0]
    cumulative = backend.conditional([], 0).cumsum()
    drawn = np.searchsorted(cumulative, firsts, side="right").reshape(50, 4)
    weights = np.array([backend.conditional([first], 1)[2] for first in range(K)])[drawn]
    np.testing.assert_allclose(decoding.effective(), weights.sum(1) ** 2 / (weights**2).sum(1), rtol=1e-6)


def test_without_particles_there_are_no_effective_numbers():
    assert finish(Decoding(TableBackend(K, T), batch_of(KNOWN, 3, 1), Sampling())).effective() is None


def test_known_ids_weigh_by_the_model_s_own_distribution_whatever_the_sampling():
    backend = TableBackend(K, 2)
    cold = finish(Decoding(backend, batch_of({1: 2}, 50, 4, length=2), Sampling(1e-3)))
    assert cold.effective() == pytest.approx(np.full(50, 4))  # all particles begin alike, so all weigh the same
    even = finish(Decoding(backend, batch_of({1: 2}, 20_000, 64, length=2), Sampling(1e6)))
    weights = np.array([backend.conditional([first], 1)[2] for first in range(K)])
    drawn = np.bincount(even.ids()[:, 0], minlength=K) / 20_000
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.02)


def test_a_picture_with_nothing_known_after_unknown_ids_is_drawn_as_without_particles():
    known_RT = np.array([[False, True, False, False, True], [True, True, False, False, False]])
    ids_RT, backend = np.array([[0, 2, 0, 0, 0], [1, 2, 0, 0, 0]]), TableBackend(K, T, 6, spread=2)
    ids = {}
    for particles in (1, 6):
        [(_, batch)] = batches_of(Task(ids_RT, known_RT, [3, 4], 8, 0, particles), 1000)
        decoding = finish(Decoding(backend, batch, Sampling()))
        ids[particles] = decoding.ids().reshape(2, 8, T)
    np.testing.assert_array_equal(ids[6][1], ids[1][1])
    assert (ids[6][0] != ids[1][0]).any()
    assert decoding.effective()[8:] == pytest.approx(np.full(8, 6))


# Real backends: a row that was copied wrongly goes on from another's state.


def make_backend(model, name):
    from imagegpt.engine.torch_backend import TorchBackend

    return onnx_of(model) if name == "onnx" else TorchBackend(model, fixed=name == "fixed")


@pytest.mark.parametrize("name", ["onnx", "eager", "fixed"])
def test_states_after_resampling_are_those_of_the_ids(tiny_model, name):
    import torch

    rng = np.random.default_rng(0)
    known_RT = rng.random((2, 64)) < 0.6
    known_RT[:, :5] = True  # a prompt
    ids_RT, task_seeds = rng.integers(0, 16, (2, 64)), [5, 6]
    task = Task(ids_RT, known_RT, task_seeds, 2, 0, 6)
    backend, copied = make_backend(tiny_model, name), []
    [(_, batch)] = batches_of(task, 100)
    prefill = backend.prefill

    def listening(*args):
        rows = prefill(*args)
        own = rows.copy
        rows.copy = lambda sources, targets, since: copied.append(targets) or own(sources, targets, since)
        return rows

    backend.prefill = listening
    decoding = finish(Decoding(backend, batch, Sampling(), with_log_probs=True))
    assert len(copied) > 5
    ids_GT, log_probs_GT = decoding.ids(), decoding.log_probs()
    np.testing.assert_array_equal(ids_GT[np.repeat(known_RT, 2, 0)], np.repeat(ids_RT, 2, 0)[np.repeat(known_RT, 2, 0)])
    with torch.no_grad():
        inputs = np.concatenate([np.full((4, 1), 16), ids_GT[:, :-1]], 1)
        logits = tiny_model(torch.from_numpy(inputs), use_cache=False).logits.log_softmax(-1).numpy()
    expected = np.take_along_axis(logits, ids_GT[:, :, None], 2)[:, :, 0]
    assert np.isnan(log_probs_GT[:, : batch.span.start]).all()
    np.testing.assert_allclose(log_probs_GT[:, batch.span.start :], expected[:, batch.span.start :], atol=1e-4)
    assert len(np.unique(ids_GT, axis=0)) == 4
