from __future__ import annotations

import numpy as np
import pytest

from imagegpt.engine.decode import decode
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.pipeline import ImageGPT
from imagegpt.spec import ModelSpec

K, T = 8, 12


class UniformBackend:
    """Every id is equally likely; writes down what it is asked."""

    def __init__(self):
        self.spec = ModelSpec(vocab_size=K + 1, n_positions=T, n_embd=8, n_layer=1, n_head=1)
        self.prefills, self.steps = [], []

    def prefill(self, inputs_RP, rows_B):
        self.prefills.append((inputs_RP.copy(), rows_B.copy()))
        return UniformRows(self, len(rows_B))


class UniformRows:
    def __init__(self, backend, rows):
        self.logits_BK = np.zeros((rows, K), np.float32)
        self._backend = backend

    def step(self, ids_B):
        assert len(ids_B) == len(self.logits_BK)
        self._backend.steps.append(ids_B.copy())


def noise(samples, seed=0):
    return np.stack([uniforms(seed, sample, T) for sample in samples])


def prompts(rows, given, seed=0):
    return np.random.default_rng(seed).integers(0, K, (rows, given))


def run(prompt_RP, rows_B, noise_BT, sampling=None, **kwargs):
    return decode(UniformBackend(), prompt_RP, np.asarray(rows_B), sampling or Sampling(), noise_BT, **kwargs)


def test_with_even_logits_an_id_is_the_part_of_the_unit_that_its_number_falls_into():
    noise_BT = noise(range(3))
    np.testing.assert_array_equal(run(prompts(1, 0), [0, 0, 0], noise_BT), (noise_BT * K).astype(int))


def test_the_same_seed_gives_the_same_ids_and_another_seed_others():
    first, again, other = (run(prompts(1, 0), [0], noise([0], seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_rows_of_a_batch_differ():
    ids_BT = run(prompts(1, 0), [0] * 5, noise(range(5)))
    assert len(np.unique(ids_BT, axis=0)) == 5


@pytest.mark.parametrize("given", [0, 1, 5, T - 1])
def test_rows_continue_the_prompt_that_is_theirs_and_never_change_it(given):
    prompt_RP, rows = prompts(3, given), [2, 0, 2, 1]
    before = prompt_RP.copy()
    ids_BT = run(prompt_RP, rows, noise(range(4)))
    assert ids_BT.shape == (4, T)
    assert ids_BT.dtype == np.int64
    np.testing.assert_array_equal(ids_BT[:, :given], before[rows])
    np.testing.assert_array_equal(prompt_RP, before)
    np.testing.assert_array_equal(ids_BT[:, given:], (noise(range(4)) * K).astype(int)[:, given:])


def test_each_prompt_is_run_once_behind_the_start_token():
    backend = UniformBackend()
    decode(backend, prompts(2, 3), np.array([0, 0, 1, 1, 1]), Sampling(), noise(range(5)))
    [(inputs_RP, rows_B)] = backend.prefills
    np.testing.assert_array_equal(inputs_RP, np.concatenate([[[K], [K]], prompts(2, 3)], 1))
    assert rows_B.tolist() == [0, 0, 1, 1, 1]


def test_each_drawn_id_but_the_last_is_fed_back_once():
    backend = UniformBackend()
    ids_BT = decode(backend, prompts(1, 4), np.array([0, 0]), Sampling(), noise(range(2)))
    assert [step.tolist() for step in backend.steps] == ids_BT.T[4:-1].tolist()


def test_the_last_position_alone_needs_no_step():
    backend = UniformBackend()
    decode(backend, prompts(1, T - 1), np.array([0]), Sampling(), noise([0]))
    assert backend.steps == []


def test_on_step_tells_the_ids_drawn_at_each_position():
    told = []
    run(prompts(1, 2), [0, 0, 0], noise(range(3)), on_step=told.append)
    assert told == [3] * (T - 2)


def test_more_samples_leave_the_first_as_they_were():
    np.testing.assert_array_equal(
        run(prompts(1, 2), [0] * 6, noise(range(6)))[:2], run(prompts(1, 2), [0] * 2, noise(range(2)))
    )


def test_sampling_is_applied_to_every_draw():
    assert (run(prompts(1, 0), [0], noise([0]), Sampling(temperature=0)) == 0).all()


class FakeImageGPT(ImageGPT):
    """The pipeline over the fake backend."""

    def __init__(self):
        self.spec, self._fake, self.batches = UniformBackend().spec, UniformBackend(), []

    @property
    def _backend(self):
        return self._fake

    def decode(self, ids_BT):
        return list(ids_BT)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 100])
def test_batch_size_changes_the_batches_and_not_the_ids(batch_size):
    prompt_RP, model = prompts(3, 5), FakeImageGPT()
    result = model._sample(prompt_RP, 3, Sampling(), 7, batch_size, None)
    rows = [len(rows_B) for _, rows_B in model._fake.prefills]
    assert max(rows) <= batch_size
    assert sum(rows) == 9
    expected = np.concatenate(
        [np.repeat(prompt_RP, 3, 0), np.tile((noise(range(3), 7) * K).astype(int), (3, 1))[:, 5:]], 1
    )
    np.testing.assert_array_equal(result.ids, expected)


def test_a_batch_runs_only_the_prompts_of_its_rows():
    model = FakeImageGPT()
    model._sample(prompts(3, 5), 2, Sampling(), 0, 2, None)
    for number, (inputs_RP, rows_B) in enumerate(model._fake.prefills):
        np.testing.assert_array_equal(inputs_RP[:, 1:], prompts(3, 5)[number : number + 1])
        assert rows_B.tolist() == [0, 0]


def test_progress_counts_all_drawn_ids_over_the_batches():
    told = []
    FakeImageGPT()._sample(prompts(2, 5), 3, Sampling(), 0, 4, lambda done, total: told.append((done, total)))
    assert told[-1] == (6 * 7, 6 * 7)
    assert [done for done, _ in told] == [4 * n for n in range(1, 8)] + [28 + 2 * n for n in range(1, 8)]


def test_without_a_seed_two_runs_differ_and_each_tells_its_seed():
    model = FakeImageGPT()
    first, second = (model.sample(2) for _ in range(2))
    assert first.seed != second.seed
    np.testing.assert_array_equal(model.sample(2, seed=first.seed).ids, first.ids)
