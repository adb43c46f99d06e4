"""ImageGPT.score: what the sampler says of its own pictures, in every backend; and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from imagegpt.engine.score import hidden_in_turn
from imagegpt.errors import InputError
from imagegpt.pipeline import ImageGPT
from reference import scoring

HOW = {
    "onnx": {"backend": "onnx"},
    "onnx int8": {"backend": "onnx", "precision": "int8"},
    "torch": {"backend": "torch"},
}


@pytest.fixture(scope="module", params=HOW)
def model(request, tiny_folder):
    return ImageGPT.from_pretrained(tiny_folder, device="cpu", **HOW[request.param])


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8))


def test_the_score_is_the_product_of_the_sampler_s_own_probabilities(model):
    drawn = model.sample(5, seed=3, log_probs=True)
    scores = model.score_ids(drawn.ids)
    np.testing.assert_allclose(scores.log_likelihood, drawn.log_probs.sum(1), rtol=1e-6)
    np.testing.assert_allclose(-scores.surprise, drawn.log_probs, atol=1e-5)


def test_the_score_of_a_completed_part_is_too(model):
    drawn = model.complete(pictures(2), keep=0.5, num_samples=2, seed=0, log_probs=True)
    scores = model.score_ids(drawn.ids)
    np.testing.assert_allclose(-scores.surprise[:, 32:], drawn.log_probs[:, 32:], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_by_steps_it_is_the_sampler_s_in_any_precision(tiny_folder, precision):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu", precision=precision)
    drawn = model.sample(5, seed=3, log_probs=True)
    found = model.score(drawn.images[0], steps=True)
    np.testing.assert_allclose(found.log_likelihood, drawn.log_probs.sum(1), rtol=1e-6)


def test_temperature_and_filters_do_not_count(model):
    drawn = model.sample(3, seed=3, log_probs=True, temperature=0.5, top_k=3)
    np.testing.assert_allclose(model.score_ids(drawn.ids).log_likelihood, drawn.log_probs.sum(1), rtol=1e-6)


def test_pictures_are_scored_as_their_ids_are(model):
    images = pictures(3)
    scores = model.score(images)
    np.testing.assert_array_equal(scores.surprise, model.score_ids(model.encode(images)).surprise)
    assert scores.surprise.shape == scores.entropy.shape == (3, 64)
    assert scores.codec == "palette of 16"
    assert scores.method == "likelihood"
    np.testing.assert_allclose(model.score(images[1]).log_likelihood, scores.log_likelihood[1], rtol=1e-6)


def test_the_whole_is_what_a_slow_network_says(model, tiny_model):
    if model.precision == "int8":
        pytest.skip("int8 is near, and not the same")
    ids_BT = model.encode(pictures(2))
    state = {name: value.numpy() for name, value in tiny_model.state_dict().items()}
    scores = model.score_ids(ids_BT)
    for row, ids_T in enumerate(ids_BT):
        surprise_T, entropy_T = scoring.scores(state, tiny_model.config.to_dict(), ids_T, 16)
        assert scores.log_likelihood[row] == pytest.approx(-surprise_T.sum(), rel=1e-6)
        np.testing.assert_allclose(scores.entropy[row], entropy_T, atol=1e-5)


def test_int8_is_near(tiny_folder):
    ids_BT = np.random.default_rng(0).integers(0, 16, (4, 64))
    exact, near = (ImageGPT.from_pretrained(tiny_folder, precision=name).score_ids(ids_BT) for name in ("fp32", "int8"))
    off = np.abs(near.log_likelihood / exact.log_likelihood - 1)
    assert (off > 0).all()
    assert (off < 0.02).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_its_probabilities_sum_to_one(tiny_folder, precision):
    ids_BT = np.random.default_rng(0).integers(0, 16, (16, 64))
    ids_BT[:, 0] = np.arange(16)
    half = ImageGPT.from_pretrained(tiny_folder, device="cpu", precision=precision).score_ids(ids_BT)
    exact = ImageGPT.from_pretrained(tiny_folder, device="cpu").score_ids(ids_BT)
    np.testing.assert_allclose(half.log_likelihood, exact.log_likelihood, rtol=0.02)
    assert abs(np.exp(-half.surprise[:, 0].astype(np.float64)).sum() - 1) < 1e-6


def test_batches_and_progress(model):
    told, images = [], pictures(5)
    scores = model.score(images, batch_size=2, progress=lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_allclose(scores.surprise, model.score(images, batch_size=5).surprise, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((1, 63), int), r"\(pictures, 64\)"),
        (np.zeros(64, int), r"\(pictures, 64\)"),
        (np.zeros((1, 64)), "whole numbers"),
        (np.full((1, 64), 16), "0 to 15"),
        (np.full((1, 64), -1), "not -1"),
    ],
)
def test_ids_that_are_no_pictures(model, ids, words):
    with pytest.raises(InputError, match=words):
        model.score_ids(ids)


def test_what_can_not_be(model):
    for options, words in (({"passes": 2}, "bidirectional"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(InputError, match=words):
            model.score(pictures(1), **options)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_scores_that_are_no_numbers_are_no_scores(folder, backend):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"] * np.float32("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="no numbers"):
        ImageGPT.from_pretrained(folder, device="cpu", backend=backend).score(pictures(1))


def test_the_backend_that_is_named_is_taken_and_else_the_faster_one(tiny_folder):
    named = [ImageGPT.from_pretrained(tiny_folder, backend=name).score_backend(1) for name in ("onnx", "torch")]
    assert named == ["onnx", "torch"]
    assert ImageGPT.from_pretrained(tiny_folder, device="cpu", precision="int8").score_backend(10**9) == "onnx"
    assert ImageGPT.from_pretrained(tiny_folder, device="cpu").score_backend(10**9) == "torch"


# A bidirectional model.


@pytest.fixture
def bert(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_causal": False}))
    return ImageGPT.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("passes", [None, 1, 64])
def test_bert_has_a_pseudo_likelihood(bert, tiny_model, passes):
    images = pictures(2)
    scores = bert.score(images, passes=passes)
    assert scores.method == "pseudo-likelihood"
    state = {name: value.numpy() for name, value in tiny_model.state_dict().items()}
    groups = list(hidden_in_turn(passes or 7, 64))
    for row, ids_T in enumerate(bert.encode(images)):
        surprise_T, entropy_T = scoring.pseudo_scores(state, tiny_model.config.to_dict(), ids_T, groups)
        np.testing.assert_allclose(scores.surprise[row], surprise_T, atol=2e-5)
        np.testing.assert_allclose(scores.entropy[row], entropy_T, atol=2e-5)


def test_bert_has_no_steps(bert):
    with pytest.raises(InputError, match="no steps"):
        bert.score(pictures(1), steps=True)


def test_bert_is_torch_s_and_its_passes_are_counted(bert, tiny_folder):
    assert bert.score_backend(1) == "torch"
    with pytest.raises(InputError, match="1 to 64"):
        bert.score(pictures(1), passes=65)
    with pytest.raises(InputError, match="BERT"):
        ImageGPT.from_pretrained(bert.path, backend="onnx").score(pictures(1))


# The embedded model.


@pytest.mark.parametrize("how", HOW)
def test_nano_s_score_is_its_sampler_s(how):
    nano = ImageGPT.from_pretrained("nano", device="cpu", **HOW[how])
    drawn = nano.sample(1, seed=0, log_probs=True)
    assert nano.score_ids(drawn.ids).log_likelihood[0] == pytest.approx(drawn.log_probs.sum(), rel=1e-6)
