"""The onnxruntime backend: its graph against numpy, and its eight bits against float32."""

from __future__ import annotations

import gc
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from decoding import decode, onnx_of, parameters
from faces import Causal, make
from imagegpt.engine import onnx_backend
from imagegpt.engine.onnx_backend import OnnxRows, calibrate
from imagegpt.engine.onnx_graph import ACTIVATIONS
from imagegpt.engine.onnx_weights import cache_names, float_weights, int8_weights
from imagegpt.engine.warp import Sampling, log_probs, uniforms
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from reference import network

VALIDATION = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10" / "validation.parquet"
T = 16


def eight_bits(spec, tensors):
    weights = int8_weights(spec, tensors)
    return weights | calibrate(spec, weights)


def weights_alone(spec, tensors):
    """Products in eight bits, the cache in float32."""
    return int8_weights(spec, tensors)


def made(pruned=None, **numbers):
    model = make(Causal, n_positions=T, **numbers)
    if pruned:
        model.prune_heads(pruned)
    return model


def random_inputs(spec, rows, seed=0):
    """(B, T): SOS and all ids but the last."""
    ids = np.random.default_rng(seed).integers(0, spec.num_colors, (rows, spec.n_positions))
    ids[:, 0] = spec.sos
    return ids


def all_logits(backend, inputs_BT):
    """(B, T, K), step by step."""
    rows, logits = OnnxRows(backend, *inputs_BT.shape), []
    for column in inputs_BT.T:
        rows.step(column)
        logits.append(rows.logits_BK.copy())
    return np.stack(logits, 1)


# The graph.

VARIANTS = {
    "plain": {},
    "plain scores": {"scale_attn_weights": False},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "odd": {"n_head": 3, "n_embd": 72, "n_inner": 77, "vocab_size": 38},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "tied": {"tie_word_embeddings": True},
    "pruned": {"n_head": 4, "pruned": {0: [1], 1: [0, 2, 3]}},
    **{name: {"activation_function": name} for name in ACTIVATIONS},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_numpy_reference_at_every_position(name):
    model = made(**VARIANTS[name])
    backend, inputs_BT = onnx_of(model), random_inputs(model.config.spec, 2)
    expected = [network.logits(parameters(model), model.config.to_dict(), row) for row in inputs_BT]
    got = all_logits(backend, inputs_BT)
    assert np.std(expected) > 0.2
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    for length in (2, 7, T):  # one run over a prompt is as good as steps
        rows = backend.prefill(inputs_BT[:, :length], np.arange(2))
        np.testing.assert_allclose(rows.logits_BK, [row[length - 1] for row in expected], atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "mish", "relu2"])
def test_an_activation_that_onnxruntime_lacks_is_an_input_error_that_names_the_other_backend(activation):
    model = make(Causal, activation_function=activation)
    with pytest.raises(InputError, match=f'{activation}.*quick_gelu.*backend="torch"'):
        onnx_of(model)


@pytest.mark.parametrize(("width", "heads"), [(36, 3), (20, 4), (32, 8)])
def test_head_widths_that_onnxruntime_lacks_are_an_input_error_that_names_the_other_backend(width, heads):
    with pytest.raises(InputError, match=rf'width {width // heads}.*multiples of 8.*backend="torch"'):
        onnx_of(make(Causal, n_embd=width, n_head=heads))


def test_weights_may_be_dropped_when_the_session_is_open():
    model = make(Causal, n_positions=T)
    inputs_BT = random_inputs(model.config.spec, 1)
    weights = {name: value.copy() for name, value in float_weights(parameters(model)).items()}
    backend = onnx_of(model, lambda spec, tensors: weights)
    before = all_logits(backend, inputs_BT)
    weights.clear()
    gc.collect()
    noise = [np.random.default_rng(0).random(size) for size in (1000, 1024, 4096, 8192) for _ in range(50)]
    np.testing.assert_array_equal(all_logits(backend, inputs_BT), before)
    assert len(noise) == 200


def test_the_cache_is_written_in_place():
    backend = onnx_of(make(Causal, n_positions=T))
    rows = backend.prefill(np.full((1, 3), 1), np.zeros(2, int))
    buffers = {name: (cache, cache.copy()) for name, cache in rows.caches.items()}
    rows.step(np.array([1, 2]))
    assert list(buffers) == cache_names(backend.spec)
    for name, (cache, before) in buffers.items():
        assert rows.caches[name] is cache
        np.testing.assert_array_equal(cache[:, :, :3], before[:, :, :3])
        assert cache[:, :, 3].any(-1).all()
        assert not cache[:, :, 4:].any()


@pytest.mark.parametrize(("threads", "expected"), [("3", 3), ("", 0), (None, 0)])
def test_the_number_of_threads_is_that_of_the_environment(threads, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    session = onnx_of(make(Causal)).session
    assert session.get_session_options().intra_op_num_threads == expected


# Eight bits.


@pytest.mark.parametrize("convert", [weights_alone, eight_bits])
@pytest.mark.parametrize("name", VARIANTS)
def test_eight_bits_change_logits_a_little(name, convert):
    model = made(**VARIANTS[name])
    inputs_BT = random_inputs(model.config.spec, 8)
    full, eight = (all_logits(onnx_of(model, *way), inputs_BT) for way in ((), (convert,)))
    error = np.sqrt(np.square(eight - full).mean()) / full.std()
    assert 0 < error < 0.05


def test_the_cache_of_eight_bits_is_int8_with_a_scale_for_each_channel():
    model = make(Causal, n_positions=T)
    spec = model.config.spec
    weights = eight_bits(spec, parameters(model))
    backend = onnx_of(model, lambda *_: weights)
    rows = OnnxRows(backend, 8, T)
    exact = OnnxRows(onnx_of(model), 8, T)
    for inputs in (rows, exact):
        inputs.append(random_inputs(spec, 8))
    for name, cache in rows.caches.items():
        assert cache.dtype == np.int8
        scales = weights[f"{name}.scale"]
        assert scales.shape == (spec.n_head * spec.head_width,)
        steps = scales.reshape(spec.n_head, 1, spec.head_width)
        # Half a level, and what eight bits have changed in the layers before.
        assert np.abs(cache * steps - exact.caches[name]).max() < 0.25
        np.testing.assert_allclose(cache * steps, exact.caches[name], atol=0.05 * np.abs(exact.caches[name]).max())
        assert np.abs(cache.astype(int)).max() <= 127


def test_calibration_leaves_room_above_what_random_ids_reach():
    model = make(Causal, n_positions=T)
    spec, weights = model.config.spec, int8_weights(model.config.spec, parameters(model))
    scales = calibrate(spec, weights)
    rows = OnnxRows(onnx_of(model, lambda *_: weights), 50, T)
    rows.append(random_inputs(spec, 50, seed=5))
    for name, cache in rows.caches.items():
        reached = np.abs(cache).max((0, 2)).reshape(-1)
        assert (scales[f"{name}.scale"] * 127 > reached).mean() > 0.9
        assert (scales[f"{name}.scale"] * 127 < 8 * reached).all()
    again = calibrate(spec, weights)
    assert all((again[name] == scales[name]).all() for name in scales)


def test_ids_in_eight_bits_do_not_depend_on_the_batch():
    model = make(Causal, n_positions=T)
    backend, prompts = onnx_of(model, eight_bits), random_inputs(model.config.spec, 8)[:, 1:6]
    noise_BT = np.stack([uniforms(0, sample, T) for sample in range(8)])
    together = decode(backend, prompts, range(8), Sampling(), noise_BT)
    for rows in ([0], [3], [2, 5, 7], [6, 0, 1, 2]):
        alone = decode(backend, prompts[rows], range(len(rows)), Sampling(), noise_BT[rows])
        np.testing.assert_array_equal(alone, together[rows])


def test_a_copied_row_in_eight_bits_continues_as_its_source_would():
    model = make(Causal, n_positions=T)
    backend = onnx_of(model, eight_bits)
    rows = backend.prefill(np.array([[16, 3, 5]]), np.zeros(3, int))
    for ids in ([1, 2, 3], [4, 5, 6]):
        rows.step(np.array(ids))
    rows.copy(np.array([2]), np.array([0]), np.array([2]))
    rows.step(np.array([7, 7, 7]))
    np.testing.assert_allclose(rows.logits_BK[0], rows.logits_BK[2], atol=1e-5)
    assert np.abs(rows.logits_BK[0] - rows.logits_BK[1]).max() > 0.1


def test_int8_needs_a_quarter_of_the_memory_for_its_cache(monkeypatch):
    model = make(Causal, n_positions=T)
    monkeypatch.setattr(onnx_backend, "free_memory", lambda: 10**9)
    full, eight = (onnx_of(model, *way).rows_that_fit(0) for way in ((), (eight_bits,)))
    assert eight > 2 * full


@pytest.mark.slow
def test_eight_bits_cost_the_embedded_model_next_to_nothing_on_photographs():
    if not VALIDATION.is_file():
        pytest.skip(f"no CIFAR-10 at {VALIDATION}")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = next(parquet.ParquetFile(VALIDATION).iter_batches(16, columns=["image"])).to_pylist()
    pictures = [Image.open(io.BytesIO(record["image"]["bytes"])) for record in records]
    nats = {}
    for precision in ("fp32", "int8"):
        model = ImageGPT.from_pretrained("nano", device="cpu", precision=precision)
        ids_BT, losses = model.encode(pictures), []
        rows = model.backend.prefill(np.full((1, 1), 512), np.zeros(16, int))
        for position in range(1024):
            losses.append(-log_probs(rows.logits_BK, ids_BT[:, position]))
            if position < 1023:
                rows.step(ids_BT[:, position])
        nats[precision] = np.mean(losses)
    full = ImageGPT.from_pretrained("nano", device="cpu").model
    with torch.inference_mode():
        assert nats["fp32"] == pytest.approx(full.image_loss(torch.from_numpy(ids_BT)).item(), abs=1e-4)
    assert 0 < abs(nats["int8"] - nats["fp32"]) < 0.005 * nats["fp32"]
