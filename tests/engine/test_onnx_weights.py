"""Weights in eight bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from decoding import parameters
from faces import Causal, make
from imagegpt.engine.onnx_weights import BLOCK, cache_names, float_weights, int8_weights, quantize_blocks

shapes = st.tuples(st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 300]), st.integers(1, 4))
weights = shapes.flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-10, 10, width=32), fill=st.floats(-1, 1, width=32))
)


@given(weights)
def test_a_level_is_off_by_at_most_half_a_step(weight):
    before = weight.copy()
    levels, scales = quantize_blocks(weight)
    inner, outer = weight.shape
    count = -(-inner // BLOCK)
    assert (levels.shape, levels.dtype) == ((outer, count, BLOCK), np.uint8)
    assert (scales.shape, scales.dtype) == ((outer, count), np.float32)
    np.testing.assert_array_equal(weight, before)
    restored = (levels.astype(float) - 128) * scales[:, :, None]
    flat = restored.reshape(outer, -1)
    assert (flat[:, inner:] == 0).all()  # padding adds nothing
    step = scales.repeat(BLOCK, 1)[:, :inner].astype(float)
    assert (np.abs(flat[:, :inner] - weight.T) <= step / 2 * (1 + 1e-5)).all()


@given(weights)
def test_a_block_s_largest_weight_is_met_and_each_block_has_its_own_scale(weight):
    levels, scales = quantize_blocks(weight)
    for output, column in enumerate(weight.T):
        for block, start in enumerate(range(0, len(column), BLOCK)):
            part = np.abs(column[start : start + BLOCK].astype(float))
            if part.max() < 1e-30:  # numbers that small need no scale of their own
                continue
            assert scales[output, block] == pytest.approx(part.max() / 127, rel=1e-6)
            largest = int(levels[output, block, part.argmax()]) - 128
            assert abs(largest) == 127


def test_weights_that_are_all_zero_stay_zero():
    levels, scales = quantize_blocks(np.zeros((5, 2), np.float32))
    assert (levels == 128).all()
    assert (scales > 0).all()


def test_the_head_alone_is_turned_in_float32():
    tensors = parameters(make(Causal))
    weights = float_weights(tensors)
    assert weights.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(weights[name], value.T if name == "lm_head.weight" else value)
        assert weights[name].flags.c_contiguous


def test_every_weight_of_a_product_is_in_eight_bits_and_nothing_else():
    model = make(Causal)
    tensors = parameters(model)
    weights = int8_weights(model.config.spec, tensors)
    products = {name.removesuffix(".levels") for name in weights if name.endswith(".levels")}
    matrices = {name for name, value in tensors.items() if value.ndim == 2 and "wte" not in name and "wpe" not in name}
    assert {f"{name}.weight" for name in products} == matrices
    assert weights.keys() == (tensors.keys() - matrices) | {
        f"{name}.{part}" for name in products for part in ("levels", "scales")
    }
    for name in products:
        weight = tensors[f"{name}.weight"]
        expected = weight if name == "lm_head" else weight.T  # (outputs, inputs)
        restored = (weights[f"{name}.levels"].astype(float) - 128) * weights[f"{name}.scales"][:, :, None]
        restored = restored.reshape(len(expected), -1)[:, : expected.shape[1]]
        np.testing.assert_allclose(restored, expected, atol=np.abs(expected).max() / 127)


def test_names_of_the_cache():
    assert cache_names(make(Causal, n_layer=2).config.spec) == ["key.0", "value.0", "key.1", "value.1"]
