"""Features of both backends against transformers' hidden states, normalised and averaged by hand."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTModel as Peer

from decoding import parameters
from faces import Causal, make
from imagegpt.checkpoint import load_tensors, read_spec
from imagegpt.engine import backends, onnx_features
from imagegpt.engine.backends import choose_for_pictures, open_onnx_features
from imagegpt.engine.cost import blocks_flops, forward_flops
from imagegpt.engine.features import check_pool, inputs_of, layers_of
from imagegpt.engine.onnx_features import OnnxFeatures
from imagegpt.engine.onnx_graph import ACTIVATIONS
from imagegpt.engine.onnx_weights import float_weights, int8_weights
from imagegpt.engine.torch_features import TorchFeatures
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from imagegpt.spec import SIZES, ModelSpec

T, L = 12, 3  # of the models below, unless they say otherwise
MODELS = {
    "plain": {},
    "one head": {"n_head": 1, "n_embd": 24},
    "head width 12": {"n_head": 2, "n_embd": 24},
    "head width 5": {"n_head": 3, "n_embd": 15},
    "head width 1": {"n_head": 4, "n_embd": 4},
    "wide heads": {"n_head": 1, "n_embd": 96},
    "pruned heads": {"n_head": 4, "pruned": {0: [1], 1: [0, 2, 3]}},
    "tied head": {"tie_word_embeddings": True},
    "plain scores": {"scale_attn_weights": False},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
    "both": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    "upcast scores": {"reorder_and_upcast_attn": True},
    "narrow inside": {"n_inner": 13},
    "wide inside": {"n_inner": 300},
    "two colours": {"vocab_size": 3},
    "601 colours": {"vocab_size": 602},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    "five layers": {"n_layer": 5},
    **{f"{length} ids": {"n_positions": length, "n_layer": 2} for length in (1, 2, 64, 127, 128, 129, 130, 255, 256)},
    **{name: {"activation_function": name} for name in ACTIVATIONS if name != "quick_gelu"},
}
ONLY_TORCH = {name: {"activation_function": name} for name in ("tanh", "leaky_relu", "gelu_fast")}
BACKENDS = {
    "onnx": lambda model, layers, pool: OnnxFeatures(model.config.spec, float_weights(parameters(model)), layers, pool),
    "torch": TorchFeatures,
}
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_pool = pytest.mark.parametrize("pool", ["mean", "none"])


def made(**numbers):
    """A model of large random weights, norms' and biases too."""
    pruned = numbers.pop("pruned", None)
    model = make(Causal, **{"n_positions": T, "n_layer": L, **numbers})
    if pruned:
        model.prune_heads(pruned)
    return model


def peer_of(**numbers):
    """transformers' model of the same weights; it can't prune heads, so what they write is nothing."""
    pruned = numbers.pop("pruned", {})
    ours = made(**numbers).transformer
    known = {name: value for name, value in ours.config.to_dict().items() if name not in ("pruned_heads", "dtype")}
    peer = Peer(PeerConfig(**known)).eval()
    missing, unexpected = peer.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.endswith(("attn.bias", "attn.masked_bias")) for name in missing)
    width = ours.config.n_embd // ours.config.n_head
    with torch.no_grad():
        for layer, heads in pruned.items():
            for head in heads:
                peer.h[layer].attn.c_proj.weight[head * width : (head + 1) * width] = 0
    return peer


def pictures(model, rows=3, seed=0):
    """(rows, T) ids of pictures: all colours, without SOS."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size - 1, (rows, model.config.n_positions))


@torch.no_grad()
def by_hand(peer, ids_BT, sos=True):
    """Layer -> (B, T, D), all in float64: hidden_states[l] under the norm of the block that reads them."""
    peer = copy.deepcopy(peer).double()
    inputs_BT = np.concatenate([np.full((len(ids_BT), 1), peer.config.vocab_size - 1), ids_BT[:, :-1]], 1)
    states = peer(torch.from_numpy(inputs_BT if sos else ids_BT), output_hidden_states=True).hidden_states
    assert len(states) == peer.config.n_layer + 1
    found = {}
    for layer, state in enumerate(states):
        x_BTD = state.numpy()
        if layer < peer.config.n_layer:  # the last are behind ln_f already
            size = np.sqrt((x_BTD**2).mean(-1, keepdims=True) + peer.config.layer_norm_epsilon)
            x_BTD = x_BTD / size * peer.h[layer].ln_1.weight.numpy()
        found[layer] = x_BTD
    return found


def pooled(states_BTD, pool):
    return states_BTD.mean(1) if pool == "mean" else states_BTD


def near(got, expected, atol=1e-5):
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=atol, rtol=0)


def extract(backend, model, layers, pool, ids_BT):
    config = model.config
    inputs_BT = inputs_of(ids_BT, config.vocab_size - 1, getattr(config, "is_causal", True))
    found = BACKENDS[backend](model, layers, pool)(inputs_BT)
    assert len(found) == len(layers)
    return dict(zip(layers, found, strict=True))


# Equality with transformers.


@pytest.fixture(scope="module", params=[*MODELS, *ONLY_TORCH])
def case(request):
    numbers = {**MODELS, **ONLY_TORCH}[request.param]
    model = made(**numbers)
    ids_BT = pictures(model)
    return request.param, model, ids_BT, by_hand(peer_of(**numbers), ids_BT)


@each_backend
def test_every_layer_equals_the_hidden_states_of_transformers(case, backend):
    name, model, ids_BT, states = case
    if backend == "onnx" and name in ONLY_TORCH:
        with pytest.raises(InputError, match=f'no activation "{name}".*backend="torch"'):
            extract(backend, model, [0], "mean", ids_BT)
        return
    for pool in ("mean", "none"):
        found = extract(backend, model, list(states), pool, ids_BT)
        for layer, expected in states.items():
            near(found[layer], pooled(expected, pool))


def test_the_layers_of_the_models_differ_and_no_norm_is_trivial(case):
    """What is equal above says something: other layers, other pictures and other positions are far away."""
    _, model, _, states = case
    for layer, x_BTD in states.items():
        assert np.abs(x_BTD - x_BTD.mean(-1, keepdims=True)).max() > 0.1
        if layer:
            assert np.abs(x_BTD - states[layer - 1]).mean() > 0.02
            if model.config.n_positions > 1:
                assert np.abs(x_BTD[0].mean(0) - x_BTD[1].mean(0)).max() > 0.01


@pytest.mark.parametrize("layers", [[0], [1], [2], [3], [0, 3], [1, 2], [3, 0], [2, 0, 3, 1]], ids=str)
@each_pool
@each_backend
def test_the_layers_that_are_asked_for_in_their_order(backend, pool, layers):
    model = made()
    ids_BT = pictures(model)
    states = by_hand(peer_of(), ids_BT)
    found = BACKENDS[backend](model, layers, pool)(inputs_of(ids_BT, model.config.vocab_size - 1, True))
    assert len(found) == len(layers)
    for got, layer in zip(found, layers, strict=True):
        near(got, pooled(states[layer], pool))


@each_pool
@each_backend
def test_through_files_as_a_user_gets_it(backend, pool, tmp_path):
    model = made(n_positions=30)
    model.save_pretrained(tmp_path)
    ids_BT = pictures(model)
    states = by_hand(Peer.from_pretrained(tmp_path).eval(), ids_BT)
    spec, layers = read_spec(tmp_path), [2, 3]
    if backend == "onnx":
        opened = open_onnx_features(tmp_path, spec, "fp32", layers, pool)
    else:
        opened = TorchFeatures(backends.load_network(tmp_path, "cpu", "fp32"), layers, pool)
    for got, layer in zip(opened(inputs_of(ids_BT, spec.sos, True)), layers, strict=True):
        near(got, pooled(states[layer], pool))


@pytest.fixture(scope="module")
def nano():
    """Of the embedded model the ids of two photographs and of noise, and what transformers' has of them."""
    model = ImageGPT.from_pretrained("nano", device="cpu")
    examples = Path(__file__).parents[2] / "examples"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    ids_BT = model.encode([examples / "chelsea.jpg", examples / "rocket.jpg", noise])
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in load_tensors(model.path).items()}
    peer = Peer(PeerConfig.from_pretrained(model.path)).eval()
    peer.load_state_dict(
        {name.removeprefix("transformer."): tensors[name] for name in tensors if "lm_head" not in name}
    )
    return ids_BT, by_hand(peer, ids_BT)


@each_backend
def test_every_layer_of_the_embedded_model(nano, backend):
    ids_BT, states = nano
    model = ImageGPT.from_pretrained("nano", device="cpu", backend=backend)
    means, found = (model.features_of(ids_BT, range(9), pool) for pool in ("mean", "none"))
    assert list(means) == list(found) == list(states)
    for layer, expected in states.items():
        near(means[layer], expected.mean(1))
        near(found[layer][:2], expected[:2])
        # On noise transformers' own float32 is off by 1e-4 at a few of the positions.
        near(found[layer][2:], expected[2:], 3e-4)


@each_backend
def test_pictures_of_one_colour_and_the_widest_ids(backend):
    model = made(n_positions=130)
    ids_BT = np.stack([np.zeros(130, np.int64), np.full(130, 15)])
    for layer, expected in by_hand(peer_of(n_positions=130), ids_BT).items():
        near(extract(backend, model, [layer], "none", ids_BT)[layer], expected)


MISTAKES = {
    "layers one off": lambda states, ids: states[2],
    "without the norm's weight": lambda states, ids: states[1] / made().transformer.h[1].ln_1.weight.detach().numpy(),
    "without SOS": lambda states, ids: by_hand(peer_of(), ids, sos=False)[1],
    "another norm": lambda states, ids: (
        states[1]
        / made().transformer.h[1].ln_1.weight.detach().numpy()
        * made().transformer.h[1].ln_2.weight.detach().numpy()
    ),
    "the last position alone": lambda states, ids: states[1][:, -1:],
    "without the first position": lambda states, ids: states[1][:, 1:],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_convention_would_be_noticed(mistake):
    ids_BT = pictures(made())
    states = by_hand(peer_of(), ids_BT)
    assert np.abs(mistake(states, ids_BT).mean(1) - states[1].mean(1)).max() > 1e-3


# Precisions.


def relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    "numbers", [{}, {"pruned": {0: [1]}, "n_head": 4}, {"n_inner": 300}, {"n_positions": 130}], ids=str
)
def test_int8_is_near_and_is_int8(numbers):
    model = made(**numbers)
    spec, ids_BT = model.config.spec, pictures(model)
    layers = list(range(L + 1))
    weights = int8_weights(spec, parameters(model))
    found = OnnxFeatures(spec, weights, layers, "mean")(inputs_of(ids_BT, spec.sos, True))
    states = by_hand(peer_of(**numbers), ids_BT)
    near(found[0], states[0].mean(1))  # nothing is multiplied yet
    for layer in layers[1:]:
        assert 1e-5 < relative(found[layer], states[layer].mean(1)) < 0.03


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@each_pool
def test_half_precision_is_near_and_is_half(dtype, bound, pool):
    model = made()
    ids_BT = pictures(model)
    states = by_hand(peer_of(), ids_BT)
    found = extract("torch", copy.deepcopy(model).to(dtype), [0, 1, 2, 3], pool, ids_BT)
    for layer, got in found.items():
        assert got.dtype == np.float32
        assert 1e-5 < relative(got, pooled(states[layer], pool)) < bound


def test_a_mean_in_half_precision_is_taken_of_float32():
    """Of 4096 positions a mean in float16 or bfloat16 would be off by more than what is averaged."""
    model = made(n_positions=1024, n_layer=1).to(torch.bfloat16)
    ids_BT = pictures(model, 1)
    found = {pool: extract("torch", model, [1], pool, ids_BT)[1] for pool in ("mean", "none")}
    near(found["mean"], found["none"].astype(np.float64).mean(1), 1e-6)


# No more work than is asked for.


@pytest.mark.parametrize(
    ("layers", "runs"),
    [
        ([0], []),
        ([1], [0]),
        ([2], [0, 1]),
        ([3], [0, 1, 2]),
        ([1, 0], [0]),
        ([2, 0, 1], [0, 1]),
        ([0, 1, 2, 3], [0, 1, 2]),
    ],
    ids=str,
)
def test_torch_runs_each_block_once_and_stops_behind_the_deepest_layer(layers, runs):
    model, calls = made(), []
    for number, block in enumerate(model.transformer.h):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    model.transformer.ln_f.register_forward_hook(lambda *_: calls.append("ln_f"))
    model.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    extract("torch", model, layers, "mean", pictures(model))
    assert calls == runs + (["ln_f"] if 3 in layers else [])


def products(graph):
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1].startswith("transformer.")]


@pytest.fixture
def opened(monkeypatch):
    """The graphs and the names of the weights that sessions are opened with."""
    found, open_session = [], onnx_features.open_session

    def watch(graph, weights, *args, **kwargs):
        found.append((onnx.load_from_string(graph).graph, set(weights)))
        return open_session(graph, weights, *args, **kwargs)

    monkeypatch.setattr(onnx_features, "open_session", watch)
    return found


@pytest.mark.parametrize("layers", [[0], [1], [2], [3], [2, 0, 1], [0, 1, 2, 3]], ids=str)
def test_onnxruntime_is_given_no_block_behind_the_deepest_layer(opened, layers):
    model, deepest = made(), max(layers)
    extract("onnx", model, layers, "mean", pictures(model))
    ((graph, weights),) = opened
    assert len(products(graph)) == 4 * deepest  # each block once, and no head
    blocks = {name for name in parameters(model) if name.startswith("transformer.h.")}
    needed = {name for name in blocks if int(name.split(".")[2]) < deepest}
    norm = "transformer.ln_f.weight" if deepest == L else f"transformer.h.{deepest}.ln_1.weight"
    assert weights == needed | {"transformer.wte.weight", "transformer.wpe.weight", norm}


def test_later_blocks_need_not_even_be_there():
    model = made()
    weights = {name: value for name, value in float_weights(parameters(model)).items() if ".h.2.m" not in name}
    weights.pop("lm_head.weight")
    weights.pop("transformer.ln_f.weight")
    ids_BT = pictures(model)
    found = OnnxFeatures(model.config.spec, weights, [2], "mean")(inputs_of(ids_BT, 16, True))
    near(found[0], by_hand(peer_of(), ids_BT)[2].mean(1))


def test_causal_attention_computes_no_more_than_blocks_of_scores(opened):
    """Of T = 1024 the scores of 128 queries over the keys up to their end: 9/16 of T x T."""
    model = made(n_positions=1024, n_layer=1, n_embd=8, n_head=1)
    extract("onnx", model, [1], "mean", pictures(model, 1))
    masks = [onnx.numpy_helper.to_array(value) for value in opened[0][0].initializer if value.name.startswith("mask")]
    assert sum(mask.size for mask in masks) == 1024 * 1024 * 9 // 16


# Batches.


@pytest.mark.parametrize("length", [12, 130])
@each_pool
@each_backend
def test_other_pictures_in_the_batch_change_nothing(backend, pool, length):
    model = made(n_positions=length)
    ids_BT = pictures(model, 7)
    extractor = BACKENDS[backend](model, [0, 2, 3], pool)
    inputs_BT = inputs_of(ids_BT, 16, True)
    together = extractor(inputs_BT)
    for rows in (1, 2, 3):
        for start in range(0, 7, rows):
            for got, expected in zip(extractor(inputs_BT[start : start + rows]), together, strict=True):
                np.testing.assert_allclose(got, expected[start : start + rows], atol=1e-6, rtol=1e-6)


@each_backend
def test_the_order_of_pictures_is_kept_and_no_result_is_overwritten_by_the_next(backend):
    model = made()
    extractor = BACKENDS[backend](model, [2], "mean")
    first, second = (inputs_of(pictures(model, 2, seed), 16, True) for seed in (0, 1))
    (one,) = extractor(first)
    kept = one.copy()
    (other,) = extractor(second)
    np.testing.assert_array_equal(one, kept)
    (turned,) = extractor(first[::-1].copy())
    np.testing.assert_allclose(turned[::-1], kept, atol=1e-6)
    assert np.abs(other - kept).max() > 0.01


@each_backend
def test_rows_that_are_run_together_are_at_least_one(backend):
    assert BACKENDS[backend](made(n_positions=256, n_layer=1), [0], "mean").rows >= 1
    assert BACKENDS[backend](made(n_positions=4096, n_layer=1, n_embd=4), [0], "mean").rows >= 1


# Causal, and bidirectional (BERT).


@each_backend
def test_an_id_changes_the_states_behind_it_alone(backend):
    model = made(n_positions=130)
    ids_BT = pictures(model, 1)
    changed = ids_BT.copy()
    changed[0, 60] = (changed[0, 60] + 1) % 16
    before, after = (extract(backend, model, [3], "none", ids)[3][0] for ids in (ids_BT, changed))
    np.testing.assert_allclose(before[:61], after[:61], atol=1e-6)  # position 61 reads id 60
    assert (np.abs(before[61:] - after[61:]).max(1) > 1e-4).all()


@each_backend
def test_the_last_id_is_never_read(backend):
    model = made()
    ids_BT = pictures(model, 1)
    changed = ids_BT.copy()
    changed[0, -1] = (changed[0, -1] + 1) % 16
    before, after = (extract(backend, model, [3], "none", ids)[3] for ids in (ids_BT, changed))
    np.testing.assert_array_equal(before, after)


def bert():
    """Our model, and transformers' with masks that hide nothing."""
    model, peer = made(is_causal=False), peer_of()
    for block in peer.h:
        block.attn.bias.fill_(True)
    return model, peer


@each_pool
def test_bert_reads_the_ids_themselves_and_attends_to_both_sides(pool):
    model, peer = bert()
    ids_BT = pictures(model)
    found = extract("torch", model, [0, 1, 2, 3], pool, ids_BT)
    for layer, expected in by_hand(peer, ids_BT, sos=False).items():
        near(found[layer], pooled(expected, pool))
    causal = by_hand(peer_of(), ids_BT, sos=False)
    assert np.abs(found[3] - pooled(causal[3], pool)).max() > 0.01


def test_bert_is_refused_by_onnxruntime_and_goes_to_torch_by_itself(tmp_path, cpu):
    model, _ = bert()
    model.save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    with pytest.raises(InputError, match=r'bidirectional \(BERT\).*backend="torch"'):
        open_onnx_features(tmp_path, spec, "fp32", [1], "mean")
    assert choose_for_pictures(tmp_path, spec, "cpu", "fp32", 1) == "torch"


# Names of layers and pools.


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (None, [4]),
        (0, [0]),
        (8, [8]),
        ("all", list(range(9))),
        ([8, 0, 3], [8, 0, 3]),
        ((1,), [1]),
        (range(2, 5), [2, 3, 4]),
    ],
)
def test_the_layers_that_are_meant(layer, expected):
    assert layers_of(layer, 8) == expected


def test_the_middle_of_an_odd_number_of_blocks():
    assert [layers_of(None, blocks) for blocks in (1, 2, 3, 7)] == [[0], [1], [1], [3]]


@pytest.mark.parametrize("layer", [9, -1, [0, 9], [-1], "9", "every", True, [True], [1.0], 1.5, [None], ["1"], b"all"])
def test_layers_that_there_are_not(layer):
    with pytest.raises(InputError, match="layer must be 0 to 8, several of these, or 'all', not"):
        layers_of(layer, 8)


@pytest.mark.parametrize("layer", [[], (), "", [1, 1], [0, 3, 0]])
def test_no_layer_and_the_same_one_twice(layer):
    with pytest.raises(InputError, match="at least one layer, and none twice"):
        layers_of(layer, 8)


@pytest.mark.parametrize("layer", [np.int64(3), [np.int32(3)], np.array([3])], ids=repr)
def test_numbers_of_numpy_are_numbers(layer):
    """As they come from np.argmax and np.arange."""
    assert layers_of(layer, 8) == [3]


@pytest.mark.parametrize("pool", ["max", "", "Mean", None])
def test_ways_of_pooling_that_there_are_not(pool):
    with pytest.raises(InputError, match="pool must be 'mean' or 'none', not"):
        check_pool(pool)


# Which backend.


@pytest.fixture
def cpu(monkeypatch):
    """A machine without a GPU; torch is imported once the test puts it there."""
    monkeypatch.setattr(backends, "may_have_accelerator", lambda: False)
    modules = {}
    monkeypatch.setattr(backends, "sys", SimpleNamespace(modules=modules, platform=sys.platform))
    return modules


def choice(folder, operations, device=None, precision="fp32", **numbers):
    spec = dataclasses.replace(read_spec(folder), **numbers)
    return choose_for_pictures(folder, spec, device, precision, operations)


def test_few_pictures_are_onnxruntime_s_and_many_torch_s(tiny_folder, cpu):
    small = SIZES["small"]
    assert choice(tiny_folder, blocks_flops(small, 12)) == "onnx"  # one picture: no import is worth it
    assert choice(tiny_folder, 50_000 * blocks_flops(small, 12)) == "torch"  # CIFAR-10
    assert choice(tiny_folder, 50_000 * blocks_flops(SIZES["nano"], 4)) == "torch"
    found = [choice(tiny_folder, 10**power) for power in range(20)]
    assert found == sorted(found)  # one border
    assert set(found) == {"onnx", "torch"}


def test_torch_that_is_imported_already_is_used(tiny_folder, cpu):
    cpu["torch"] = object()
    assert choice(tiny_folder, 1) == "torch"
    assert choice(tiny_folder, 1, precision="int8") == "onnx"


@pytest.mark.parametrize("operations", [1, 10**18])
def test_what_only_one_backend_has_is_its(tiny_folder, cpu, operations):
    assert choice(tiny_folder, operations, precision="int8") == "onnx"
    assert choice(tiny_folder, operations, precision="bf16") == "torch"
    assert choice(tiny_folder, operations, precision="fp16") == "torch"
    assert choice(tiny_folder, operations, device="cuda") == "torch"
    assert choice(tiny_folder, operations, activation_function="tanh") == "torch"


def test_a_gpu_is_torch_s(tiny_folder, cpu, monkeypatch):
    monkeypatch.setattr(backends, "may_have_accelerator", lambda: True)
    monkeypatch.setattr(backends, "torch_device", lambda name: torch.device("cuda"))
    assert choice(tiny_folder, 1) == "torch"
    assert choice(tiny_folder, 1, device="cpu") == "onnx"


def test_quantised_folders_are_torch_s(folder, cpu):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "quanto"}}))
    assert choice(folder, 1) == "torch"


def test_features_of_a_few_pictures_import_neither_torch_nor_transformers(tiny_folder):
    code = f"""if True:
        import sys
        import numpy as np
        from imagegpt import ImageGPT
        model = ImageGPT.from_pretrained({str(tiny_folder)!r}, device="cpu")
        assert model.features([np.zeros((8, 8, 3), np.uint8)] * 3, "all")[2].shape == (3, 32)
        print([name for name in ("torch", "transformers") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# What it costs.


@pytest.mark.parametrize("blocks", range(4))
@pytest.mark.parametrize("length", [None, 1, 7, 20])
def test_the_operations_of_some_blocks(blocks, length):
    t, d, inner = length or 20, 24, 50
    spec = ModelSpec(
        vocab_size=11, n_positions=20, n_embd=d, n_layer=3, n_head=3, n_inner=inner, pruned_heads={1: [0, 2]}
    )
    expected = 0
    for width in (24, 8, 24)[:blocks]:  # of all heads of the block
        linear = 3 * width * d + width * d + 2 * d * inner
        pairs = sum(range(1, t + 1))
        expected += 2 * t * linear + 2 * 2 * pairs * width
    assert blocks_flops(spec, blocks, length) == expected


@pytest.mark.parametrize("name", ["nano", "small", "large"])
def test_a_whole_forward_is_all_blocks_and_the_head(name):
    spec = SIZES[name]
    assert forward_flops(spec) == blocks_flops(spec, spec.n_layer) + 2 * spec.n_positions * spec.n_embd * 512
    halves = [blocks_flops(spec, spec.n_layer // part) for part in (1, 2)]
    assert halves[0] == 2 * halves[1]
