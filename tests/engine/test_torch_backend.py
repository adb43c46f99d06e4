from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

from imagegpt.engine.decode import decode
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.pipeline import ImageGPT
from reference import sampler

K, T = 16, 64  # of tiny_model


def random_ids(rows, length=T, seed=0):
    return np.random.default_rng(seed).integers(0, K, (rows, length))


def inputs_of(ids_BT):
    return np.concatenate([np.full((len(ids_BT), 1), K), ids_BT], 1)


@torch.no_grad()
def recomputed(model, ids_BT):
    """(T, B, K): the logits of each position, each from a forward of its own over the whole prefix."""
    inputs = torch.from_numpy(inputs_of(ids_BT))
    return [model(inputs[:, :end], use_cache=False).logits[:, -1].numpy() for end in range(1, T + 1)]


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("given", [0, 1, T - 1])
def test_steps_of_the_backend_equal_recomputing_the_prefix_at_every_position(tiny_model, rows, given):
    ids_BT = random_ids(rows)
    expected = recomputed(tiny_model, ids_BT)
    on_the_way = TorchBackend(tiny_model).prefill(inputs_of(ids_BT[:, :given]), np.arange(rows))
    assert_close(on_the_way.logits_BK, expected[given])
    for position in range(given, T - 1):
        on_the_way.step(ids_BT[:, position])
        assert_close(on_the_way.logits_BK, expected[position + 1])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("given", [0, 1, T - 1])
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_forward_with_a_cache_equals_recomputing_the_prefix_at_every_position(tiny_model, rows, given, implementation):
    ids_BT = random_ids(rows)
    expected = recomputed(tiny_model, ids_BT)
    inputs = torch.from_numpy(inputs_of(ids_BT))
    before = tiny_model.config._attn_implementation
    tiny_model.set_attn_implementation(implementation)
    try:
        output = tiny_model(inputs[:, : given + 1], use_cache=True)
        assert isinstance(output.past_key_values, DynamicCache)
        assert_close(output.logits[:, -1].numpy(), expected[given])
        for position in range(given + 1, T):
            output = tiny_model(inputs[:, position, None], past_key_values=output.past_key_values, use_cache=True)
            assert_close(output.logits[:, -1].numpy(), expected[position])
        assert output.past_key_values.get_seq_length() == T
    finally:
        tiny_model.set_attn_implementation(before)


@torch.no_grad()
def test_forward_takes_several_new_ids_after_a_cache(tiny_model):
    ids = torch.from_numpy(inputs_of(random_ids(2, 20)))
    first = tiny_model(ids[:, :5], use_cache=True)
    rest = tiny_model(ids[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, tiny_model(ids).logits[:, 5:], atol=1e-5, rtol=1e-5)


def test_a_later_id_never_changes_an_earlier_logit(tiny_model):
    ids_BT = random_ids(1, 30)
    changed = ids_BT.copy()
    changed[0, 20] = (changed[0, 20] + 1) % K
    with torch.no_grad():
        one, two = (tiny_model(torch.from_numpy(inputs_of(ids))).logits[0] for ids in (ids_BT, changed))
    torch.testing.assert_close(one[:21], two[:21], atol=0, rtol=0)
    assert (one[21] - two[21]).abs().max() > 1e-2


STRATEGIES = {
    "greedy": {"temperature": 0},
    "plain": {},
    "cool": {"temperature": 0.7},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "all": {"temperature": 1.3, "top_k": 9, "top_p": 0.9},
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_decode_gives_the_ids_of_the_slow_sampler(tiny_model, strategy):
    prompt_RP, rows_B = random_ids(2, 24), np.array([1, 0, 1])
    noise_BT = np.stack([uniforms(11, sample, T) for sample in range(3)])
    ids_BT = decode(TorchBackend(tiny_model), prompt_RP, rows_B, Sampling(**strategy), noise_BT)
    assert ids_BT.tolist() == sampler.sample(tiny_model, prompt_RP[rows_B], noise_BT, **strategy)


def test_decode_from_nothing_gives_the_ids_of_the_slow_sampler(tiny_model):
    noise_BT = np.stack([uniforms(3, sample, T) for sample in range(2)])
    ids_BT = decode(TorchBackend(tiny_model), random_ids(1, 0), np.zeros(2, int), Sampling(), noise_BT)
    assert ids_BT.tolist() == sampler.sample(tiny_model, [[], []], noise_BT)
    assert len(np.unique(ids_BT)) > 4  # not one id over and over


def test_rows_of_one_prompt_do_not_share_their_states(tiny_model):
    prompt, one, two = random_ids(1, 10), random_ids(1, T, 1), random_ids(1, T, 2)
    both = TorchBackend(tiny_model).prefill(inputs_of(prompt), np.array([0, 0]))
    for position in range(5):
        both.step(np.concatenate([one[:, position], two[:, position]]))
    for row, own in enumerate((one, two)):
        whole = torch.from_numpy(inputs_of(np.concatenate([prompt, own[:, :5]], 1)))
        with torch.no_grad():
            assert_close(both.logits_BK[row], tiny_model(whole).logits[0, -1].numpy())


def test_two_decodings_of_one_backend_do_not_disturb_each_other(tiny_model):
    backend = TorchBackend(tiny_model)
    prompt = inputs_of(random_ids(1, 7, 1))
    alone, disturbed = backend.prefill(prompt, np.array([0])), backend.prefill(prompt, np.array([0]))
    alone.step(np.array([4]))
    other = backend.prefill(inputs_of(random_ids(3, 40)), np.arange(3))
    other.step(np.array([1, 2, 3]))
    disturbed.step(np.array([4]))
    np.testing.assert_array_equal(alone.logits_BK, disturbed.logits_BK)


def test_logits_are_float32_of_k_colours_in_every_dtype(tiny_folder):
    for dtype in ("float32", "bfloat16", "float16"):
        backend = TorchBackend(ImageGPT(tiny_folder, "cpu", dtype).model)
        rows = backend.prefill(np.array([[K], [K]]), np.array([0, 1, 1]))
        rows.step(np.array([1, 2, 3]))
        assert (rows.logits_BK.dtype, rows.logits_BK.shape) == (np.float32, (3, K))
        assert np.isfinite(rows.logits_BK).all()
        assert backend.model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_pipeline_gives_the_ids_of_the_slow_sampler_at_every_batch_size(tiny_model, tiny_folder, batch_size):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    result = model.complete(pictures, keep=0.75, num_samples=2, top_k=8, seed=9, batch_size=batch_size)
    given = model.encode(pictures)[:, :48]
    noise_BT = np.stack([uniforms(9, sample, T) for sample in (0, 1, 0, 1)])
    assert result.ids.tolist() == sampler.sample(tiny_model, given[[0, 0, 1, 1]], noise_BT, top_k=8)
    assert (result.seed, result.given, [len(images) for images in result.images]) == (9, 48, [2, 2])
