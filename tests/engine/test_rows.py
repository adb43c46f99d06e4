"""What the rows of every backend do: onnxruntime, torch's eager steps, and its fixed ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decoding import decode, onnx_of
from imagegpt.engine import decode as decode_module
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling, uniforms

K, T = 16, 64  # of tiny_model
NAMES = ["onnx", "eager", "fixed"]


@pytest.fixture(scope="module", params=NAMES)
def backend(request, tiny_model):
    return make_backend(tiny_model, request.param)


def make_backend(model, name):
    return onnx_of(model) if name == "onnx" else TorchBackend(model, fixed=name == "fixed")


def random_ids(rows, length=T, seed=0):
    return np.random.default_rng(seed).integers(0, K, (rows, length))


def inputs_of(ids_BT):
    return np.concatenate([np.full((len(ids_BT), 1), K), ids_BT], 1)


@torch.no_grad()
def recomputed(model, ids_BT):
    """(T, B, K): the logits of each position, each from a forward of its own over the whole prefix."""
    inputs = torch.from_numpy(inputs_of(ids_BT))
    return [model(inputs[:, :end], use_cache=False).logits[:, -1].numpy() for end in range(1, T + 1)]


@torch.no_grad()
def after(model, *rows):
    """(B, K): the logits after each row's ids."""
    return np.stack([model(torch.tensor([[K, *row]]), use_cache=False).logits[0, -1].numpy() for row in rows])


def logits_of(backend, rows):
    return backend.numpy(rows.logits_BK).copy()


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def append(backend, rows, *columns):
    for column in columns:
        rows.step(backend.array(np.array(column)))


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("given", [0, 1, T // 2 - 1, T - 1])
def test_steps_equal_recomputing_the_prefix_at_every_position(tiny_model, backend, rows, given):
    ids_BT = random_ids(rows)
    expected = recomputed(tiny_model, ids_BT)
    on_the_way = backend.prefill(inputs_of(ids_BT[:, :given]), np.arange(rows))
    assert_close(logits_of(backend, on_the_way), expected[given])
    for position in range(given, T - 1):
        append(backend, on_the_way, ids_BT[:, position])
        assert_close(logits_of(backend, on_the_way), expected[position + 1])


def test_logits_are_float32_of_k_colours(backend):
    rows = backend.prefill(np.array([[K], [K]]), np.array([0, 1, 1]))
    append(backend, rows, [1, 2, 3])
    assert (logits_of(backend, rows).dtype, logits_of(backend, rows).shape) == (np.float32, (3, K))


def test_rows_continue_the_prompt_that_is_theirs(tiny_model, backend):
    prompts, rows_B = random_ids(3, 20), np.array([2, 0, 2, 1, 0])
    rows = backend.prefill(inputs_of(prompts), rows_B)
    assert_close(logits_of(backend, rows), after(tiny_model, *prompts[rows_B]))
    ids = random_ids(5, 3, 1)
    append(backend, rows, *ids.T)
    assert_close(logits_of(backend, rows), after(tiny_model, *np.concatenate([prompts[rows_B], ids], 1)))


@pytest.mark.parametrize("limit", [1, 21, 42, 84])
def test_prompts_in_several_groups_give_what_one_group_gives(tiny_model, backend, limit, monkeypatch):
    prompts, rows_B = random_ids(4, 20), np.array([3, 0, 2, 1, 3])
    runs = []
    groups = decode_module.prompt_groups
    for module in ("onnx_backend", "torch_backend"):
        monkeypatch.setattr(
            f"imagegpt.engine.{module}.prompt_groups", lambda *args: runs.append(list(groups(*args))) or runs[-1]
        )
    monkeypatch.setattr(decode_module, "PROMPT_IDS", limit)
    rows = backend.prefill(inputs_of(prompts), rows_B)
    assert [len(run) for run in runs] == [{1: 4, 21: 4, 42: 2, 84: 1}[limit]]
    append(backend, rows, [1, 2, 3, 4, 5])
    expected = after(tiny_model, *([*prompts[r], i + 1] for i, r in enumerate(rows_B)))
    assert_close(logits_of(backend, rows), expected)


def test_rows_of_one_prompt_do_not_share_their_states(tiny_model, backend):
    prompt, one, two = random_ids(1, 10), random_ids(1, T, 1), random_ids(1, T, 2)
    both = backend.prefill(inputs_of(prompt), np.array([0, 0]))
    append(backend, both, *([one[0, t], two[0, t]] for t in range(5)))
    assert_close(logits_of(backend, both), after(tiny_model, *([*prompt[0], *own[0, :5]] for own in (one, two))))


def test_two_decodings_of_one_backend_do_not_disturb_each_other(tiny_model, backend):
    prompt = random_ids(1, 7, 1)
    alone = backend.prefill(inputs_of(prompt), np.array([0]))
    append(backend, alone, [4], [5])
    expected = logits_of(backend, alone)
    del alone
    disturbed = backend.prefill(inputs_of(prompt), np.array([0]))
    append(backend, disturbed, [4])
    same_size, other = (
        backend.prefill(inputs_of(prompt), np.array([0])),
        backend.prefill(inputs_of(random_ids(3, 40)), np.arange(3)),
    )
    append(backend, other, [1, 2, 3])
    append(backend, same_size, [9], [9], [9])
    append(backend, disturbed, [5])
    np.testing.assert_array_equal(logits_of(backend, disturbed), expected)
    assert_close(expected, after(tiny_model, [*prompt[0], 4, 5]))
    assert_close(logits_of(backend, same_size), after(tiny_model, [*prompt[0], 9, 9, 9]))


@pytest.mark.parametrize("since", ["from nothing", "from where they part"])
def test_a_copied_row_continues_as_its_source_would_and_others_stay(tiny_model, backend, since):
    prompt, own = random_ids(1, 6), random_ids(5, 8, 3)
    own[1, :4], own[3, :2] = own[0, :4], own[4, :2]  # what they have in common
    rows = backend.prefill(inputs_of(prompt), np.zeros(5, int))
    append(backend, rows, *own.T)
    from_B = np.array([6 + 4, 6 + 2]) if since == "from where they part" else np.zeros(2, int)
    rows.copy(np.array([0, 4]), np.array([1, 3]), from_B)
    own = own[[0, 0, 2, 4, 4]]
    histories = np.concatenate([np.tile(prompt, (5, 1)), own], 1)
    assert_close(logits_of(backend, rows), after(tiny_model, *histories))
    more = random_ids(5, 5, 4)
    append(backend, rows, *more.T)  # and then they go ways of their own again
    assert_close(logits_of(backend, rows), after(tiny_model, *np.concatenate([histories, more], 1)))


def test_arrays_of_a_backend_are_numbers_of_the_same_type(backend):
    for dtype in (np.float64, np.int64, bool):
        values = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
        there_and_back = backend.numpy(backend.array(values))
        np.testing.assert_array_equal(there_and_back, values)
        assert there_and_back.dtype == values.dtype
    sliced = np.arange(12.0).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(backend.numpy(backend.array(sliced)), sliced)


def test_more_rows_fit_into_more_memory(backend, monkeypatch):
    from imagegpt.engine.cost import cache_numbers, decode_memory

    fit = {}
    for free in (0, 10**6, 10**8, 10**9):
        for module in ("onnx_backend", "torch_backend"):
            monkeypatch.setattr(f"imagegpt.engine.{module}.free_memory", lambda *device, free=free: free)
        fit[free] = [backend.rows_that_fit(prompt) for prompt in (0, 32, 63)]
    assert fit[0] == [1, 1, 1]
    assert (np.diff(list(fit.values()), axis=0) > 0).all()
    assert all(rows == sorted(rows, reverse=True) for rows in fit.values())  # prompts take memory too
    for free in (10**8, 10**9):
        for prompt, rows in zip((0, 32, 63), fit[free], strict=True):
            assert decode_memory(backend.spec, rows, rows, prompt, 4) <= free
    assert fit[10**9][0] < 10**9 / (4 * cache_numbers(backend.spec) * T)


def test_a_fresh_backend_is_not_needed_for_the_same_ids(tiny_model, backend):
    noise_BT = np.stack([uniforms(4, sample, T) for sample in range(3)])
    first, other, again = (
        decode(backend, prompt, np.zeros(3, int), Sampling(), noise_BT)
        for prompt in (random_ids(1, 9), random_ids(1, 30, 1), random_ids(1, 9))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
