"""`ImageGPT.features`: pictures in, features out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTModel as Peer

from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 11, 8, 3), np.uint8))


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(request, tiny_folder):
    return ImageGPT.from_pretrained(tiny_folder, device="cpu", backend=request.param)


@pytest.fixture(scope="module")
def expected(tiny_folder, model):
    """Layer -> (5, T, D) of five pictures, by transformers."""
    peer = Peer.from_pretrained(tiny_folder).eval()
    inputs = np.insert(model.encode(pictures(5))[:, :-1], 0, model.spec.sos, axis=1)
    with torch.no_grad():
        states = peer(torch.from_numpy(inputs), output_hidden_states=True).hidden_states
        normed = [block.ln_1(state) for block, state in zip(peer.h, states[:-1], strict=True)]
    return [state.numpy() for state in (*normed, states[-1])]


def near(got, wanted):
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


def test_every_layer_of_pictures_pooled_and_not(model, expected):
    means, states = (model.features(pictures(5), "all", pool) for pool in ("mean", "none"))
    assert list(means) == list(states) == [0, 1, 2]
    for layer, wanted in enumerate(expected):
        near(means[layer], wanted.mean(1))
        near(states[layer], wanted)
        near(model.features(pictures(5), layer), wanted.mean(1))
        near(model.features(pictures(5), layer, pool="none"), wanted)


def test_the_middle_is_the_default_and_one_picture_is_one_row(model, expected):
    near(model.features(pictures(5)), expected[1].mean(1))
    near(model.features(pictures(5)[0]), expected[1][:1].mean(1))


def test_several_layers_are_a_dictionary_in_their_order(model, expected):
    for layers in ([2, 0], (1,), range(3)):
        found = model.features(pictures(5), layers)
        assert list(found) == list(layers)
        for layer in layers:
            near(found[layer], expected[layer].mean(1))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_change_nothing_and_progress_tells_of_them(model, batch_size):
    told = []
    whole = model.features(pictures(5), "all")
    found = model.features(pictures(5), "all", batch_size=batch_size, progress=lambda *at: told.append(at))
    for layer, wanted in whole.items():
        np.testing.assert_allclose(found[layer], wanted, atol=1e-6)
    assert told == [(min(done, 5), 5) for done in range(batch_size, 5 + batch_size, batch_size)]


def test_other_layers_and_pools_in_turn_are_not_mixed_up(model, expected):
    for layer, pool in [(1, "mean"), (2, "mean"), (2, "none"), (1, "mean"), (0, "none")]:
        wanted = expected[layer].mean(1) if pool == "mean" else expected[layer]
        near(model.features(pictures(5), layer, pool), wanted)


def test_what_was_told_before_stays(model):
    first = model.features(pictures(3), 1)
    kept = first.copy()
    model.features(pictures(3, seed=1), 1)
    np.testing.assert_array_equal(first, kept)


def test_ids_are_taken_as_pictures_are(model, expected):
    found = model.features_of(model.encode(pictures(5)), [2, 1])
    assert list(found) == [2, 1]
    near(found[2], expected[2].mean(1))
    none = model.features_of(np.zeros((0, 64), np.int64), [1], "none")
    assert none[1].shape == (0, 64, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 3}, "layer must be 0 to 2"),
        ({"layer": -1}, "layer must be 0 to 2"),
        ({"layer": "last"}, "layer must be 0 to 2"),
        ({"layer": [1, 1]}, "none twice"),
        ({"layer": []}, "at least one layer"),
        ({"pool": "max"}, "pool must be 'mean' or 'none'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"images": "gone.png"}, r"gone\.png"),
    ],
    ids=str,
)
def test_what_can_not_be_done(model, options, words):
    with pytest.raises(InputError, match=words):
        model.features(**{"images": pictures(1), **options})


def test_a_number_of_numpy_is_one_layer(model):
    """As np.argmax gives the best one."""
    np.testing.assert_array_equal(model.features(pictures(2), np.int64(2)), model.features(pictures(2), 2))


def test_the_backend_that_is_named_is_taken_however_many_pictures(tiny_folder):
    for name in ("onnx", "torch"):
        model = ImageGPT.from_pretrained(tiny_folder, device="cpu", backend=name)
        assert [model.feature_backend([2], count) for count in (1, 10**9)] == [name, name]


def test_compiling_is_torch_s(tiny_folder):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu", compile=True)
    assert model.feature_backend([2], 1) == "torch"


def test_heads_that_onnxruntime_s_decoding_lacks_have_features_there(folder):
    """Of width 12: there is no step of such heads, but the features need none."""
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    config = ImageGPTConfig(vocab_size=17, n_positions=64, n_embd=24, n_layer=2, n_head=2)
    ImageGPTForCausalImageModeling(config).save_pretrained(folder)
    onnx, other = (ImageGPT.from_pretrained(folder, device="cpu", backend=name) for name in ("onnx", "torch"))
    near(onnx.features(pictures(2)), other.features(pictures(2)))


def test_bert_is_torch_s(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_causal": False}))
    model = ImageGPT.from_pretrained(folder, device="cpu")
    assert model.feature_backend([1], 1) == "torch"
    ids = model.encode(pictures(2))
    changed = ids.copy()
    changed[:, -1] = (changed[:, -1] + 1) % 16
    before, after = (model.features_of(each, [2], "none")[2] for each in (ids, changed))
    assert (np.abs(before - after).max(2) > 1e-5).all()  # the last id is read, and seen by all
    for draw in (lambda: model.sample(1), lambda: model.complete(pictures(1))):
        with pytest.raises(InputError, match=r"BERT.*can't draw"):
            draw()
    with pytest.raises(InputError, match="BERT"):
        ImageGPT.from_pretrained(folder, device="cpu", backend="onnx").features(pictures(1))
