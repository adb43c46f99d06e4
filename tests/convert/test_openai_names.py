"""The table of names: every parameter once, both directions, sizes read from shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import optimiser, variable_shapes, variables
from imagegpt.checkpoint import expected_shapes
from imagegpt.convert.names import TABLE, left_out, parts_of, read_sizes
from imagegpt.errors import InputError
from imagegpt.spec import SIZES, ModelSpec

SIZE = {"layers": 2, "width": 12, "heads": 3, "colors": 5, "positions": 9}
# The rule of each variable, said again in the plainest way: (N, H, D) -> what stands where in the parameter.
N, H, D = 3, 4, 12


def converted(arrays: dict) -> dict:
    spec, causal = read_sizes({name: array.shape for name, array in arrays.items()})
    return {part.name: part.to_hf(arrays.__getitem__) for part in parts_of(spec, causal)}


def test_each_number_is_where_it_should_be():
    arrays = variables(variable_shapes(**SIZE))
    found = converted(arrays)
    q_NHD, v_NHD = arrays["model/h1/attn/q_proj"], arrays["model/h1/attn/v_proj"]
    packed = found["transformer.h.1.attn.c_attn.weight"]
    out = found["transformer.h.1.attn.c_proj.weight"]
    assert (packed.shape, out.shape) == ((D, 3 * D), (D, D))
    for head in range(N):
        for place in range(H):
            for width in range(D):
                assert packed[width, head * H + place] == q_NHD[head, place, width]
                assert packed[width, 2 * D + head * H + place] == v_NHD[head, place, width]
                assert out[head * H + place, width] == arrays["model/h1/attn/c_proj"][head, place, width]
    np.testing.assert_array_equal(found["transformer.wte.weight"][:5], arrays["model/wte"])
    np.testing.assert_array_equal(found["transformer.wte.weight"][5], arrays["model/sos"])
    same = {
        "transformer.wpe.weight": "model/wpe",
        "lm_head.weight": "model/wtet",
        "transformer.ln_f.weight": "model/ln_f/g",
        "transformer.h.0.ln_1.weight": "model/h0/ln_1/g",
        "transformer.h.1.ln_2.weight": "model/h1/ln_2/g",
        "transformer.h.0.mlp.c_fc.weight": "model/h0/mlp/c_fc/w",
        "transformer.h.1.mlp.c_proj.weight": "model/h1/mlp/c_proj/w",
    }
    for name, variable in same.items():
        np.testing.assert_array_equal(found[name], arrays[variable])
    assert not any(array.any() for name, array in found.items() if name.endswith("bias"))


def test_attention_is_openais_einsum():
    arrays = variables(variable_shapes(**SIZE))
    found, x_BSD = converted(arrays), np.random.default_rng(1).standard_normal((2, 4, D), np.float32)
    for number, name in enumerate("qkv"):
        theirs = np.einsum("bsf,nhf->bnsh", x_BSD, arrays[f"model/h0/attn/{name}_proj"])
        ours = np.split(x_BSD @ found["transformer.h.0.attn.c_attn.weight"], 3, axis=-1)[number]
        np.testing.assert_allclose(ours.reshape(2, 4, N, H).swapaxes(1, 2), theirs, atol=1e-5)
    y_BNSH = np.random.default_rng(2).standard_normal((2, N, 4, H), np.float32)
    theirs = np.einsum("bnsh,nhf->bsf", y_BNSH, arrays["model/h0/attn/c_proj"])
    ours = y_BNSH.swapaxes(1, 2).reshape(2, 4, D) @ found["transformer.h.0.attn.c_proj.weight"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_there_and_back_is_the_same(layers, heads, head_width, colors, side, bert):
    shapes = variable_shapes(layers, heads * head_width, heads, colors, side * side, bert)
    arrays = variables(shapes)
    spec, causal = read_sizes(shapes)
    assert causal != bert
    assert (spec.n_layer, spec.n_head, spec.n_embd) == (layers, heads, heads * head_width)
    assert (spec.num_colors, spec.n_positions) == (colors, side * side)
    found = converted(arrays)
    assert {name: array.shape for name, array in found.items()} == expected_shapes(spec)
    if bert:
        assert not found["transformer.wte.weight"][-1].any()
    back: dict = {}
    for part in parts_of(spec, causal):
        back |= part.to_openai(found[part.name])
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_every_row_of_the_table_is_used():
    spec = ModelSpec(n_layer=1, n_embd=4, n_head=2, vocab_size=3, n_positions=4)
    assert {part.name.replace(".0.", ".{}.") for part in parts_of(spec, True)} == {row[0] for row in TABLE}


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize("flat", [True, False])
def test_the_known_sizes(name, flat):
    spec = SIZES[name]
    shapes = variable_shapes(spec.n_layer, spec.n_embd, spec.n_head, 512, 1024)
    if flat:  # heads side by side: only the table of sizes knows how many
        shapes = {key: (spec.n_embd, spec.n_embd) if len(shape) == 3 else shape for key, shape in shapes.items()}
    assert read_sizes(shapes) == (spec, True)


def test_heads_that_only_the_user_knows():
    shapes = variable_shapes(**SIZE)
    flat = {key: (12, 12) if len(shape) == 3 else shape for key, shape in shapes.items()}
    with pytest.raises(InputError, match=r"how many heads 2 layers of width 12 have: give --n-head"):
        read_sizes(flat)
    assert read_sizes(flat, 6)[0].n_head == 6
    with pytest.raises(InputError, match=r"n_embd \(12\) must be divisible by n_head \(5\)"):
        read_sizes(flat, 5)
    with pytest.raises(InputError, match="q_proj has 3 heads, not 4"):
        read_sizes(shapes, 4)
    assert read_sizes(shapes, 3)[0].n_head == 3


@pytest.mark.parametrize("name", variable_shapes(**SIZE))
def test_a_missing_tensor_is_named(name):
    shapes = variable_shapes(**SIZE)
    del shapes[name]
    if name == "model/sos":
        assert read_sizes(shapes)[1] is False
        return
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_sizes(shapes)


@pytest.mark.parametrize("name", variable_shapes(**SIZE))
@pytest.mark.parametrize("shape", [(), (7,), (7, 12), (12, 7), (3, 4, 7), (0, 12), (1, 1, 1, 1), (1 << 40, 1 << 40)])
def test_a_wrong_shape_is_named(name, shape):
    with pytest.raises(InputError, match=r"model/|positions do not make a square|divisible|whole number|at least 2"):
        read_sizes({**variable_shapes(**SIZE), name: shape})


def test_a_layer_that_is_skipped():
    shapes = variable_shapes(**SIZE)
    with pytest.raises(InputError, match=r"model/h2/\S+ is missing"):
        read_sizes(shapes | {"model/h3/ln_1/g": (12,)})


def test_what_is_left_out():
    arrays = variables(variable_shapes(**SIZE))
    spec, causal = read_sizes({name: array.shape for name, array in arrays.items()})
    more = ["model/clf/wclf", "model/clf/wclf/Adam", "model/h0/attn/c_attn/b", "model/wte/EMA"]
    kinds = left_out([*arrays, *optimiser(arrays), *more], parts_of(spec, causal))
    assert set(kinds) == {"optimiser", "counter", "class head", "unknown"}
    assert len(kinds["optimiser"]) == 2 * len(arrays) + 3  # two of them counters of Adam's, one the class head's
    assert kinds["counter"] == ["global_step"]
    assert kinds["class head"] == ["model/clf/wclf"]
    assert kinds["unknown"] == ["model/h0/attn/c_attn/b", "model/wte/EMA"]


def test_a_bias_that_openais_layout_can_not_hold():
    spec = ModelSpec(n_layer=1, n_embd=4, n_head=2, vocab_size=3, n_positions=4)
    part = next(part for part in parts_of(spec, True) if part.name.endswith("c_fc.bias"))
    assert part.to_openai(np.zeros(16, np.float32)) == {}
    with pytest.raises(InputError, match=r"transformer\.h\.0\.mlp\.c_fc\.bias is not zero"):
        part.to_openai(np.ones(16, np.float32))
