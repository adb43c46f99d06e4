"""What is drawn does not depend on how it is divided into batches."""

from __future__ import annotations

import numpy as np
import pytest

from decoding import TableBackend, UniformBackend, batches_of, finish
from imagegpt.engine.batches import Task
from imagegpt.engine.decode import Decoding
from imagegpt.engine.warp import Sampling, uniforms

K, T = 8, 12


def prompts(rows, given, seed=0):
    return np.random.default_rng(seed).integers(0, K, (rows, given))


def task_of(prompt_RP, samples, seeds, length=T, **kwargs):
    """Plain prompts."""
    pictures, given = prompt_RP.shape
    ids_RT = np.concatenate([prompt_RP, np.zeros((pictures, length - given), np.int64)], 1)
    known_RT = np.tile(np.arange(length) < given, (pictures, 1))
    return Task(ids_RT, known_RT, seeds, samples, **kwargs)


def draw(backend, task, rows, sampling=None):
    """(G, T) ids of all samples, batch by batch."""
    ids_GT, log_probs_GT = np.full((2, task.total, task.ids_RT.shape[1]), -9.0)
    for part, batch in batches_of(task, rows):
        assert (ids_GT[part] == -9).all()
        decoding = finish(Decoding(backend, batch, sampling or Sampling(), with_log_probs=True))
        ids_GT[part], log_probs_GT[part] = decoding.ids(), decoding.log_probs()
    return ids_GT.astype(int), log_probs_GT


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 100])
def test_batch_size_changes_the_batches_and_not_the_ids(rows):
    prompt_RP, backend = prompts(3, 5), UniformBackend(K, T)
    ids_GT, _ = draw(backend, task_of(prompt_RP, 3, [7, 7, 7]), rows)
    sizes = [len(rows_B) for _, rows_B in backend.prefills]
    assert max(sizes) <= rows
    assert sum(sizes) == 9
    assert len(sizes) == -(-9 // rows)
    numbers = np.stack([uniforms(7, sample, T) for sample in range(3)])
    drawn = np.tile((numbers * K).astype(int), (3, 1))[:, 5:]
    np.testing.assert_array_equal(ids_GT, np.concatenate([np.repeat(prompt_RP, 3, 0), drawn], 1))


def test_a_batch_runs_only_the_prompts_of_its_rows():
    backend = UniformBackend(K, T)
    draw(backend, task_of(prompts(3, 5), 2, [0, 0, 0]), 2)
    assert len(backend.prefills) == 3
    for number, (inputs_RP, rows_B) in enumerate(backend.prefills):
        np.testing.assert_array_equal(inputs_RP[:, 1:], prompts(3, 5)[number : number + 1])
        assert rows_B.tolist() == [0, 0]


def test_a_picture_has_the_numbers_of_its_own_seed():
    ids_GT, _ = draw(UniformBackend(K, T), task_of(prompts(2, 0), 2, [4, 9]), 3)
    expected = [uniforms(seed, sample, T) for seed in (4, 9) for sample in (0, 1)]
    np.testing.assert_array_equal(ids_GT, (np.stack(expected) * K).astype(int))


@pytest.mark.parametrize("particles", [1, 3])
def test_a_later_start_gives_the_last_of_more(particles):
    known_RT = np.array([[True, False, True, False, True]])
    many, few = (
        draw(TableBackend(3, 5), Task(np.ones((1, 5), int), known_RT, [3], samples, first, particles), 4)[0]
        for samples, first in ((7, 0), (3, 4))
    )
    np.testing.assert_array_equal(many[4:], few)
    assert (many[:3] != few).any()


MASKS = ["x.x.x", ".xx..", "xx.xx", "..x.."]


def masked(pictures, samples, particles):
    """A task whose pictures are known at other positions each."""
    known_RT = np.array([[mark == "x" for mark in MASKS[picture]] for picture in pictures])
    ids_RT = np.random.default_rng(1).integers(0, 3, (len(MASKS), 5))[pictures]
    return Task(ids_RT, known_RT, [10 + picture for picture in pictures], samples, 0, particles)


@pytest.mark.parametrize("particles", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_picture_gets_the_same_whatever_is_beside_it(rows, particles):
    together, scores = draw(TableBackend(3, 5, spread=2), masked([0, 1, 2, 3], 3, particles), rows)
    for picture in range(4):
        own, task = slice(3 * picture, 3 * picture + 3), masked([picture], 3, particles)
        alone, alone_scores = draw(TableBackend(3, 5, spread=2), task, 100)
        np.testing.assert_array_equal(together[own], alone)
        drawn = ~task.known_RT[0]
        np.testing.assert_array_equal(scores[own][:, drawn], alone_scores[:, drawn])
        assert np.isfinite(alone_scores[:, drawn]).all()


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_positions_are_those_that_a_run_steps_through(rows, particles):
    task, stepped = masked([0, 1, 2, 3], 2, particles), 0
    for part, batch in batches_of(task, rows):
        stepped += (part.stop - part.start) * sum(1 for _ in Decoding(TableBackend(3, 5), batch, Sampling()))
    assert sum(task.positions(part) for part in task.parts(rows)) == stepped > 0


@pytest.mark.parametrize(
    ("rows", "particles", "sizes"), [(8, 3, [2, 2, 1]), (2, 3, [1] * 5), (15, 3, [5]), (2, 1, [2, 2, 1])]
)
def test_a_batch_holds_whole_samples_and_at_least_one(rows, particles, sizes):
    task = Task(np.zeros((1, 4), int), np.zeros((1, 4), bool), [0], 5, 0, particles)
    batches = batches_of(task, rows)
    assert [part.stop - part.start for part, _ in batches] == sizes
    assert [len(batch.rows_B) for _, batch in batches] == [size * particles for size in sizes]
    assert [batch.particles for _, batch in batches] == [particles] * len(sizes)


def test_particles_have_numbers_of_their_own_and_the_first_those_of_the_sample():
    [(_, batch)] = batches_of(Task(np.zeros((1, T), int), np.zeros((1, T), bool), [6], 2, 0, 3), 6)
    assert batch.rows_B.tolist() == [0] * 6
    np.testing.assert_array_equal(batch.uniforms_BT[[0, 3]], [uniforms(6, 0, T), uniforms(6, 1, T)])
    streams = np.concatenate([batch.uniforms_BT, batch.resampling_GT])
    assert streams.shape == (8, T)
    assert len(np.unique(streams)) == streams.size  # no number is used twice


def test_one_particle_needs_no_numbers_to_choose():
    [(_, batch)] = batches_of(Task(np.zeros((1, T), int), np.zeros((1, T), bool), [6], 2), 6)
    assert batch.resampling_GT is None


@pytest.mark.parametrize(("marks", "prompt"), [(["xx.x", "xxxx"], 2), (["....", "xxxx"], 0), (["xxxx", "xxxx"], 4)])
def test_the_prompt_is_what_all_pictures_have_given(marks, prompt):
    known_RT = np.array([[mark == "x" for mark in row] for row in marks])
    task = Task(np.zeros((2, 4), int), known_RT, [0, 1], 3)
    assert (task.prompt, task.total) == (prompt, 6)
