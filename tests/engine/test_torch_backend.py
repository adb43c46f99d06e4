"""What only torch's backend has: fixed steps, logits processors, precisions; and forward with caches of its own."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.cache_utils import DynamicCache

from decoding import decode, finish
from imagegpt.engine import torch_backend
from imagegpt.engine.decode import Batch, Decoding
from imagegpt.engine.torch_backend import TorchBackend, as_process, fixed_step
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.pipeline import ImageGPT
from reference import sampler

K, T = 16, 64  # of tiny_model
each_way = pytest.mark.parametrize("fixed", [False, True], ids=["eager", "fixed"])


def random_ids(rows, length=T, seed=0):
    return np.random.default_rng(seed).integers(0, K, (rows, length))


def inputs_of(ids_BT):
    return np.concatenate([np.full((len(ids_BT), 1), K), ids_BT], 1)


def noise(rows, seed=0):
    return np.stack([uniforms(seed, sample, T) for sample in range(rows)])


@torch.no_grad()
def recomputed(model, ids_BT):
    """(T, B, K): the logits of each position, each from a forward of its own over the whole prefix."""
    inputs = torch.from_numpy(inputs_of(ids_BT))
    return [model(inputs[:, :end], use_cache=False).logits[:, -1].numpy() for end in range(1, T + 1)]


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


# The model's own forward with a cache.


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


# Fixed steps.


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("bucket", [16, 24, 128])
@pytest.mark.parametrize("given", [0, 14, 15, 16, 40])
def test_fixed_steps_see_the_cache_in_parts_and_give_the_same_logits(
    tiny_model, given, bucket, implementation, monkeypatch
):
    monkeypatch.setattr(torch_backend, "BUCKET", bucket)
    ids_BT, seen = random_ids(3), []
    expected = recomputed(tiny_model, ids_BT)
    backend = TorchBackend(tiny_model, fixed=True)
    backend.run_fixed = lambda model, state, part: seen.append(part) or fixed_step(model, state, part)
    tiny_model.set_attn_implementation(implementation)
    try:
        rows = backend.prefill(inputs_of(ids_BT[:, :given]), np.arange(3))
        for position in range(given, T - 1):
            rows.step(torch.from_numpy(ids_BT[:, position]))
            assert_close(rows.logits_BK.numpy(), expected[position + 1])
    finally:
        tiny_model.set_attn_implementation("sdpa")
    # After the step at a position, SOS and position + 1 ids are in the cache.
    assert seen == [min(-(-(position + 2) // bucket) * bucket, T) for position in range(given, T - 1)]


def test_a_state_is_used_again_and_gives_the_ids_of_a_fresh_one(tiny_model):
    used, prompt_RP = TorchBackend(tiny_model, fixed=True), random_ids(2, 5)
    rows = used.prefill(inputs_of(random_ids(3, 40, 1)), np.arange(3))
    state = rows._state
    for position in range(20):
        rows.step(torch.from_numpy(random_ids(3)[:, position]))
    del rows
    gc.collect()
    ids_BT = decode(used, prompt_RP, [0, 1, 0], Sampling(), noise(3))
    fresh_BT = decode(TorchBackend(tiny_model, fixed=True), prompt_RP, [0, 1, 0], Sampling(), noise(3))
    np.testing.assert_array_equal(ids_BT, fresh_BT)
    gc.collect()
    assert used.prefill(inputs_of(prompt_RP), np.array([0, 1, 0]))._state is state


def test_states_are_kept_for_one_number_of_rows_and_never_shared(tiny_model):
    backend, start = TorchBackend(tiny_model, fixed=True), np.full((1, 1), K)
    one, two, other = (backend.prefill(start, np.zeros(rows, int)) for rows in (2, 2, 3))
    states = {id(rows._state) for rows in (one, two, other)}
    assert len(states) == 3
    del one, two
    gc.collect()
    assert {rows: len(idle) for rows, idle in backend._idle.items()} == {2: 2}
    del other
    gc.collect()
    assert {rows: len(idle) for rows, idle in backend._idle.items()} == {3: 1}


def test_steps_are_fixed_where_they_are_compiled_or_asked_to_be(tiny_model):
    ways = [({}, False), ({"fixed": True}, True), ({"compile": True}, True), ({"compile": True, "fixed": False}, False)]
    for arguments, fixed in ways:
        assert TorchBackend(tiny_model, **arguments).fixed is fixed
    assert TorchBackend(tiny_model).run_fixed is fixed_step


def test_a_compiled_step_gives_the_same_logits(tiny_model):
    torch.compiler.reset()
    ids_BT = random_ids(2)
    expected = recomputed(tiny_model, ids_BT)
    backend = TorchBackend(tiny_model, compile=True)
    assert backend.run_fixed is not fixed_step
    rows = backend.prefill(inputs_of(ids_BT[:, :50]), np.arange(2))
    assert_close(rows.logits_BK.numpy(), expected[50])
    for position in range(50, T - 1):
        rows.step(torch.from_numpy(ids_BT[:, position]))
        assert_close(rows.logits_BK.numpy(), expected[position + 1])
    torch.compiler.reset()


# Decoding.

STRATEGIES = {
    "greedy": {"temperature": 0},
    "plain": {},
    "cool": {"temperature": 0.7},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
}


@each_way
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_decode_gives_the_ids_of_the_slow_sampler(tiny_model, strategy, fixed):
    prompt_RP, rows_B = random_ids(2, 24), np.array([1, 0, 1])
    ids_BT = decode(TorchBackend(tiny_model, fixed=fixed), prompt_RP, rows_B, Sampling(**strategy), noise(3, 11))
    assert ids_BT.tolist() == sampler.sample(tiny_model, prompt_RP[rows_B], noise(3, 11), **strategy)


def test_decode_from_nothing_gives_the_ids_of_the_slow_sampler(tiny_model):
    ids_BT = decode(TorchBackend(tiny_model), random_ids(1, 0), np.zeros(2, int), Sampling(), noise(2, 3))
    assert ids_BT.tolist() == sampler.sample(tiny_model, [[], []], noise(2, 3))
    assert len(np.unique(ids_BT)) > 4  # not one id over and over


@each_way
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_logits_are_float32_of_k_colours_in_every_precision(tiny_model, tiny_folder, precision, fixed):
    model = ImageGPT(tiny_folder, "cpu", precision, backend="torch").model
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    ids_BT = random_ids(3, 10)
    rows = TorchBackend(model, fixed=fixed).prefill(np.array([[K], [K]]), np.array([0, 1, 1]))
    for position in range(10):
        rows.step(torch.from_numpy(ids_BT[:, position]))
    assert (rows.logits_BK.dtype, rows.logits_BK.shape) == (torch.float32, (3, K))
    errors = np.abs(rows.logits_BK.numpy() - _after(tiny_model, ids_BT))
    assert errors.max() < {"fp32": 1e-5, "bf16": 0.3, "fp16": 0.03}[precision]


@torch.no_grad()
def _after(model, ids_BP):
    return model(torch.from_numpy(inputs_of(ids_BP)), use_cache=False).logits[:, -1].numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_pipeline_gives_the_ids_of_the_slow_sampler_at_every_batch_size(tiny_model, tiny_folder, batch_size, backend):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend=backend)
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    result = model.complete(pictures, keep=0.75, num_samples=2, top_k=8, seed=9, batch_size=batch_size)
    given = model.encode(pictures)[:, :48]
    noise_BT = np.stack([uniforms(9, sample, T) for sample in (0, 1, 0, 1)])
    assert result.ids.tolist() == sampler.sample(tiny_model, given[[0, 0, 1, 1]], noise_BT, top_k=8)
    assert (result.seed, result.given, [len(images) for images in result.images]) == (9, 48, [2, 2])


# transformers' logits processors.


class Listener(LogitsProcessor):
    """Writes down what it is given."""

    def __init__(self):
        self.inputs, self.scores = [], []

    def __call__(self, input_ids, scores):
        self.inputs.append(input_ids.clone())
        self.scores.append(scores.clone())
        return scores


class InPlace(LogitsProcessor):
    """Leaves a few ids, by writing over its argument."""

    def __call__(self, input_ids, scores):
        scores[:, 3:] = -torch.inf
        return scores


@each_way
def test_a_processor_sees_the_start_token_and_the_ids_so_far(tiny_model, fixed):
    listener, prompt_RP = Listener(), random_ids(2, 50)
    process = as_process(listener, K)
    backend = TorchBackend(tiny_model, fixed=fixed)
    ids_BT = decode(backend, prompt_RP, [0, 1, 1], Sampling(), noise(3), process=process)
    assert len(listener.inputs) == T - 50
    expected = recomputed(tiny_model, ids_BT)
    for position, (inputs, scores) in enumerate(zip(listener.inputs, listener.scores, strict=True), 50):
        np.testing.assert_array_equal(inputs.numpy(), inputs_of(ids_BT[:, :position]))
        assert inputs.dtype == torch.int64
        assert_close(scores.numpy(), expected[position])
    np.testing.assert_array_equal(ids_BT, decode(backend, prompt_RP, [0, 1, 1], Sampling(), noise(3)))


@each_way
def test_a_processor_that_writes_over_its_argument_changes_only_what_is_drawn(tiny_model, fixed):
    known_RT = np.arange(T)[None] < 40
    known_RT[:, 50] = True  # weighs by the model's own logits
    ids_RT, choosing = random_ids(1), np.random.default_rng(0).random((2, T))
    batch = Batch(ids_RT, known_RT, np.zeros(8, int), noise(8), 4, choosing)
    backend = TorchBackend(tiny_model, fixed=fixed)
    decoding = finish(Decoding(backend, batch, Sampling(), as_process(InPlace(), K), with_log_probs=True))
    ids_BT = decoding.ids()
    drawn = ids_BT[:, ~known_RT[0]]
    assert set(drawn.ravel()) == {0, 1, 2}
    expected = torch.from_numpy(np.stack(recomputed(tiny_model, ids_BT), 1)).log_softmax(-1).numpy()
    expected = np.take_along_axis(expected, ids_BT[:, :, None], 2)[:, :, 0]
    np.testing.assert_allclose(decoding.log_probs()[:, 40:], expected[:, 40:], atol=1e-5)


def test_several_processors_apply_in_turn(tiny_model):
    suppress = [SuppressTokensLogitsProcessor(list(ids)) for ids in (range(8), range(8, 14))]
    for given in (suppress, LogitsProcessorList(suppress)):
        ids_BT = decode(
            TorchBackend(tiny_model), random_ids(1, 0), [0, 0], Sampling(), noise(2), process=as_process(given, K)
        )
        assert set(ids_BT.ravel()) == {14, 15}


def test_uniform_numbers_stay_in_float64(tiny_model):
    numbers = np.array([0.5 - 1e-12, 1 - 2.0**-53])
    assert TorchBackend(tiny_model).array(numbers).tolist() == numbers.tolist()
