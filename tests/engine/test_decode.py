from __future__ import annotations

import numpy as np
import pytest

from decoding import TableBackend, UniformBackend, decode, finish
from imagegpt.engine import decode as module
from imagegpt.engine.decode import UNKNOWN, Batch, Decoding, prompt_groups
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.errors import InputError
from imagegpt.sequence import known_later

K, T = 8, 12


def noise(samples, seed=0, length=T):
    return np.stack([uniforms(seed, sample, length) for sample in samples])


def prompts(rows, given, seed=0):
    return np.random.default_rng(seed).integers(0, K, (rows, given))


def run(prompt_RP, rows_B, noise_BT, sampling=None, **kwargs):
    return decode(UniformBackend(K, T), prompt_RP, rows_B, sampling or Sampling(), noise_BT, **kwargs)


def known_at(*marks):
    """(R, T) from strings like "xx..x": what is known."""
    return np.array([[mark == "x" for mark in row] for row in marks])


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
    backend, prompt_RP = UniformBackend(K, T), prompts(2, 3)
    decode(backend, prompt_RP[[0, 1, 0]], [0, 2, 0, 1, 1], Sampling(), noise(range(5)))
    [(inputs_RP, rows_B)] = backend.prefills
    assert len(inputs_RP) == 2  # two of the three are the same
    np.testing.assert_array_equal(inputs_RP[rows_B, 0], K)
    np.testing.assert_array_equal(inputs_RP[rows_B, 1:], prompt_RP[[0, 0, 0, 1, 1]])


def test_each_drawn_id_but_the_last_is_fed_back_once():
    backend = UniformBackend(K, T)
    ids_BT = decode(backend, prompts(1, 4), [0, 0], Sampling(), noise(range(2)))
    assert [step.tolist() for step in backend.steps] == ids_BT.T[4:-1].tolist()


def test_the_last_position_alone_needs_no_step():
    backend = UniformBackend(K, T)
    decode(backend, prompts(1, T - 1), [0], Sampling(), noise([0]))
    assert backend.steps == []


def test_iterating_tells_the_positions_and_may_be_left_between_any_two():
    prompt_RP = prompts(1, 2)
    whole = run(prompt_RP, [0, 0], noise(range(2)))
    ids_RT = np.concatenate([prompt_RP, np.full((1, T - 2), 5)], 1)
    batch = Batch(ids_RT, known_at("xx" + "." * (T - 2)), np.array([0, 0]), noise(range(2)))
    decoding, told = Decoding(UniformBackend(K, T), batch, Sampling(), with_log_probs=True), []
    assert (decoding.ids()[:, 2:] == UNKNOWN).all()
    for position in decoding:
        told.append(position)
        done = decoding.ids()
        np.testing.assert_array_equal(done[:, : position + 1], whole[:, : position + 1])
        assert (done[:, position + 1 :] == UNKNOWN).all()
        drawn = np.isfinite(decoding.log_probs())
        assert drawn.tolist() == [[2 <= t <= position for t in range(T)]] * 2
        done[:] = 0  # what is told is the caller's own
        if position == T - 3:
            break
    assert told == list(range(2, T - 2))


def test_more_samples_leave_the_first_as_they_were():
    np.testing.assert_array_equal(
        run(prompts(1, 2), [0] * 6, noise(range(6)))[:2], run(prompts(1, 2), [0] * 2, noise(range(2)))
    )


def test_sampling_is_applied_to_every_draw():
    assert (run(prompts(1, 0), [0], noise([0]), Sampling(temperature=0)) == 0).all()


# Known ids between unknown ones.


def test_known_ids_stay_and_are_fed_back_and_the_others_are_drawn():
    known_RT, ids_RT = known_at("x..x.x......", ".xx.......xx"), prompts(2, T, 3)
    backend, rows_B = UniformBackend(K, T), np.array([1, 0, 1])
    batch = Batch(ids_RT, known_RT, rows_B, noise(range(3)))
    ids_BT = finish(Decoding(backend, batch, Sampling())).ids()
    expected = np.where(known_RT, ids_RT, UNKNOWN)[rows_B]
    expected = np.where(expected == UNKNOWN, (noise(range(3)) * K).astype(int), expected)
    np.testing.assert_array_equal(ids_BT, expected)
    assert [step.tolist() for step in backend.steps] == ids_BT.T[:-1].tolist()[: len(backend.steps)]


def test_what_stands_in_the_place_of_unknown_ids_does_not_matter():
    known_RT, ids_RT = known_at("xx.x........"), prompts(1, T)
    results = []
    for filling in (0, 7, 10**6, -5):
        batch = Batch(np.where(known_RT, ids_RT, filling), known_RT, np.array([0]), noise([0]))
        results.append(finish(Decoding(TableBackend(K, 5), _cut(batch, 5), Sampling())).ids().tolist())
    assert all(result == results[0] for result in results)


def _cut(batch, length):
    return Batch(batch.ids_RT[:, :length], batch.known_RT[:, :length], batch.rows_B, batch.uniforms_BT[:, :length])


@pytest.mark.parametrize(
    ("marks", "particles", "start", "end"),
    [
        (["......"], 1, 0, 6),
        (["xx...."], 1, 2, 6),
        (["xx..xx"], 1, 2, 4),
        (["xx..xx"], 4, 2, 6),  # the last known ids weigh
        (["xx..xx", "x....."], 1, 1, 6),
        (["xx..xx", "xxx.xx"], 1, 2, 4),
        (["xxxxxx"], 1, 6, 6),
        (["xxxxxx"], 4, 6, 6),
        (["xxxxxx", "xxxxx."], 1, 5, 6),
    ],
)
def test_only_the_positions_that_matter_are_run(marks, particles, start, end):
    known_RT = known_at(*marks)
    ids_RT, groups = prompts(len(marks), 6) % 3, len(marks)
    rows_B = np.arange(groups).repeat(particles)
    choosing = noise(range(groups), 1, 6) if particles > 1 else None
    batch = Batch(ids_RT, known_RT, rows_B, noise(range(len(rows_B)), 0, 6), particles, choosing)
    assert batch.span == range(start, end)
    backend = TableBackend(3, 6)
    decoding = Decoding(backend, batch, Sampling())
    assert list(decoding) == list(range(start, end))
    assert len(backend.steps) == max(0, end - start - 1)
    assert len(backend.prefills) == (end > start)
    ids_GT = decoding.ids()
    np.testing.assert_array_equal(ids_GT[known_RT], ids_RT[known_RT])
    assert ((ids_GT >= 0) & (ids_GT < 3)).all()


@pytest.mark.parametrize(
    ("known", "later"),
    [("xx....", "......"), ("xx..x.", "....x."), ("..xx..", "..xx.."), (".xxxxx", ".xxxxx"), ("xxxxxx", "......")],
)
def test_known_ids_count_after_the_first_unknown_one(known, later):
    np.testing.assert_array_equal(known_later(known_at(known, "xxxxxx")), known_at(later, "......"))


# Log-probabilities, and logits that are changed on the way.


def test_log_probs_are_the_model_s_own_whatever_the_sampling():
    backend = TableBackend(3, 5)
    known_RT, ids_RT = known_at("x.x.x"), np.array([[2, 0, 1, 0, 2]])
    batch = Batch(ids_RT, known_RT, np.zeros(4, int), noise(range(4), 0, 5))
    decoding = finish(Decoding(backend, batch, Sampling(0.5, top_k=2), with_log_probs=True))
    for ids, log_probs in zip(decoding.ids(), decoding.log_probs(), strict=True):
        assert np.isnan(log_probs[0])
        assert np.isnan(log_probs[4])  # nothing is drawn after it: it is not run
        for t in (1, 2, 3):  # known ids that are passed are scored too
            assert log_probs[t] == pytest.approx(np.log(backend.conditional(ids, t)[ids[t]]), abs=1e-6)


def test_without_asking_there_are_no_log_probs():
    batch = Batch(prompts(1, T), known_at("x" * (T - 1) + "."), np.array([0]), noise([0]))
    assert finish(Decoding(UniformBackend(K, T), batch, Sampling())).log_probs() is None


def test_a_process_sees_the_ids_so_far_and_its_logits_are_sampled_from():
    seen = []

    def only_next(ids_BP, logits_BK):
        """After id i comes i + 1."""
        seen.append(ids_BP.copy())
        wanted = (ids_BP[:, -1:] + 1) % K
        return np.where(np.arange(K) == wanted, logits_BK, -np.inf)

    ids_BT = run(np.array([[3], [6]]), [0, 1, 1], noise(range(3)), process=only_next)
    np.testing.assert_array_equal(ids_BT, (np.array([[3], [6], [6]]) + np.arange(T)) % K)
    assert [ids_BP.shape for ids_BP in seen] == [(3, t) for t in range(1, T)]
    assert all((ids_BP == ids_BT[:, : ids_BP.shape[1]]).all() for ids_BP in seen)


def test_a_process_does_not_change_the_log_probs():
    def even(ids_BP, logits_BK):
        return logits_BK * 0

    backend = TableBackend(3, 4)
    batch = Batch(np.zeros((1, 4), int), known_at("...."), np.zeros(3, int), noise(range(3), 0, 4))
    decoding = finish(Decoding(backend, batch, Sampling(), even, with_log_probs=True))
    np.testing.assert_array_equal(decoding.ids(), (noise(range(3), 0, 4) * 3).astype(int))
    for ids, log_probs in zip(decoding.ids(), decoding.log_probs(), strict=True):
        expected = [np.log(backend.conditional(ids, t)[ids[t]]) for t in range(4)]
        np.testing.assert_allclose(log_probs, expected, atol=1e-6)


# Prompts in groups.


@pytest.mark.parametrize(("limit", "sizes"), [(100, [5]), (12, [3, 2]), (11, [2, 2, 1]), (4, [1] * 5), (1, [1] * 5)])
def test_prompts_are_run_in_groups_of_bounded_size(monkeypatch, limit, sizes):
    monkeypatch.setattr(module, "PROMPT_IDS", limit)
    inputs_RP, rows_B = prompts(5, 4), np.array([4, 0, 0, 2, 3, 4, 1])
    groups = list(prompt_groups(inputs_RP, rows_B))
    assert [group.stop - group.start for group, _ in groups] == sizes
    assert [group.start for group, _ in groups] == [sum(sizes[:n]) for n in range(len(sizes))]
    for group, of_group in groups:
        assert of_group.tolist() == [b for b, r in enumerate(rows_B) if group.start <= r < group.stop]


# Scores that are no numbers.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drawn_from_scores_that_are_no_numbers(value, temperature):
    with pytest.raises(InputError, match="scores that are no numbers"):
        run(prompts(1, 2), [0], noise([0]), Sampling(temperature), process=lambda ids, logits: logits * 0 + value)


def test_one_score_that_is_no_number_is_enough():
    def spoil(ids_BP, logits_BK):
        spoilt = np.where(np.arange(K) == 3, np.nan, logits_BK)
        return np.where(np.arange(len(logits_BK))[:, None] == ids_BP.shape[1] - 5, spoilt, logits_BK)

    with pytest.raises(InputError, match="scores that are no numbers"):
        run(prompts(1, 2), [0, 0, 0], noise(range(3)), process=spoil)


def test_a_process_may_leave_one_id_only():
    ids_BT = run(prompts(1, 0), [0], noise([0]), process=lambda ids, x: np.where(np.arange(K) == 5, x, -np.inf))
    assert (ids_BT == 5).all()


def test_a_process_gives_scores_of_the_same_shape():
    with pytest.raises(InputError, match=r"scores of the shape \(1, 8\), not \(1, 3\)"):
        run(prompts(1, 0), [0], noise([0]), process=lambda ids, logits: logits[:, :3])
