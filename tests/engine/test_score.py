"""Likelihoods of every backend: against a slow network in float64, transformers, and what the samplers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

from decoding import TableBackend, onnx_of, parameters
from faces import Causal, make
from imagegpt.engine import torch_score
from imagegpt.engine.onnx_score import OnnxScorer
from imagegpt.engine.onnx_weights import float_weights
from imagegpt.engine.score import PASSES, Scores, bits_per_dim, hidden_in_turn, read_passes, score_ids
from imagegpt.engine.step_score import StepScorer
from imagegpt.engine.torch_score import TorchScorer
from imagegpt.errors import InputError
from reference import scoring

T = 12
MODELS = {
    "plain": {"n_positions": T},
    "tied head": {"n_positions": T, "tie_word_embeddings": True},
    "two colours": {"n_positions": T, "vocab_size": 3},
    "601 colours": {"n_positions": T, "vocab_size": 602},
    "one id": {"n_positions": 1},
    "130 ids": {"n_positions": 130, "n_layer": 2},
    "scores by layer": {"n_positions": T, "scale_attn_by_inverse_layer_idx": True},
}
SCORERS = {
    "onnx": lambda model: OnnxScorer(model.config.spec, float_weights(parameters(model))),
    "torch": TorchScorer,
    "steps": lambda model: StepScorer(onnx_of(model)),
}
each_model = pytest.mark.parametrize("numbers", MODELS.values(), ids=MODELS)
each_scorer = pytest.mark.parametrize("kind", SCORERS)


def pictures(model, rows=3, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.spec.num_colors, (rows, model.config.n_positions))


def scored(kind, model, ids_BT, rows=None, progress=None):
    return score_ids(SCORERS[kind](model), ids_BT, model.config.spec.sos, None, rows, progress)


def reference(model, ids_BT):
    if model.config.scale_attn_by_inverse_layer_idx:
        pytest.skip("the slow network has no such scores")
    state, config = parameters(model), model.config.to_dict()
    pairs = [scoring.scores(state, config, ids_T, model.config.spec.sos) for ids_T in ids_BT]
    return [np.stack(each) for each in zip(*pairs, strict=True)]


@each_model
@each_scorer
def test_every_backend_tells_what_a_slow_network_in_float64_does(kind, numbers):
    model = make(Causal, **numbers)
    ids_BT = pictures(model)
    for found, wanted in zip(scored(kind, model, ids_BT), reference(model, ids_BT), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


@each_model
@each_scorer
def test_the_score_is_what_transformers_logits_say(kind, numbers):
    model = make(Causal, **numbers)
    if model.config.tie_word_embeddings:
        pytest.skip("transformers' tied head scores SOS")
    known = {name: value for name, value in model.config.to_dict().items() if name != "dtype"}
    peer = Peer(PeerConfig(**known)).eval().double()
    peer.load_state_dict(model.state_dict(), strict=False)
    ids_BT = pictures(model)
    inputs = torch.from_numpy(np.concatenate([np.full((3, 1), model.config.spec.sos), ids_BT[:, :-1]], 1))
    with torch.no_grad():
        log_probs = peer(inputs).logits.log_softmax(-1)
    wanted = -log_probs.gather(2, torch.from_numpy(ids_BT)[..., None])[..., 0].numpy()
    np.testing.assert_allclose(scored(kind, model, ids_BT)[0], wanted, atol=1e-5, rtol=1e-5)


@each_scorer
def test_the_probabilities_of_all_first_ids_sum_to_one(kind):
    model = make(Causal, n_positions=2, vocab_size=513)
    ids_BT = np.stack([np.arange(512), np.zeros(512, int)], 1)
    surprise_BT, entropy_BT = scored(kind, model, ids_BT)
    probs = np.exp(-surprise_BT[:, 0].astype(np.float64))
    assert abs(probs.sum() - 1) < 1e-6
    np.testing.assert_allclose(entropy_BT[:, 0], -(probs * np.log(probs)).sum(), rtol=1e-5)


@each_scorer
def test_the_probabilities_of_all_pictures_sum_to_one(kind):
    model = make(Causal, n_positions=3, vocab_size=5)
    ids_BT = np.stack(np.meshgrid(*[range(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    surprise_BT, _ = scored(kind, model, ids_BT)
    assert abs(np.exp(-surprise_BT.sum(1, dtype=np.float64)).sum() - 1) < 1e-6


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@each_scorer
def test_batches_change_nothing_and_progress_tells_of_them(kind, rows):
    model, told = make(Causal, n_positions=T), []
    ids_BT = pictures(model, 5)
    found = scored(kind, model, ids_BT, rows, lambda *at: told.append(at))
    for each, alone in zip(found, scored(kind, model, ids_BT, 1), strict=True):
        np.testing.assert_allclose(each, alone, atol=1e-5)
    assert told == [(min(done, 5), 5) for done in range(rows, 5 + rows, rows)]


@each_scorer
def test_no_pictures_have_no_scores(kind):
    model = make(Causal, n_positions=T)
    assert [each.shape for each in scored(kind, model, np.empty((0, T), np.int64))] == [(0, T)] * 2


def test_parts_of_the_logits_change_nothing(monkeypatch):
    model = make(Causal, n_positions=T)
    ids_BT = pictures(model)
    whole = TorchScorer(model)
    monkeypatch.setattr(torch_score, "CPU_LOGITS", 5 * model.config.spec.num_colors)
    parts = TorchScorer(model)
    for one, other in zip(whole(ids_BT, ids_BT), parts(ids_BT, ids_BT), strict=True):
        np.testing.assert_array_equal(one, other)


@each_scorer
def test_a_colour_that_can_not_be_leaves_the_entropy_a_number(kind):
    model = make(Causal, n_positions=T, vocab_size=3)
    with torch.no_grad():
        model.lm_head.weight[0] = 0
        model.lm_head.weight[1] = 1e4
        model.transformer.ln_f.weight.fill_(1)
    surprise_BT, entropy_BT = scored(kind, model, pictures(model))
    assert surprise_BT.max() > 300
    assert np.isfinite(entropy_BT).all()
    assert np.abs(entropy_BT).max() < 1e-5


def test_steps_are_those_of_the_sampler():
    """Its rows begin with SOS alone, and are told every id but the last."""
    backend = TableBackend(4, 3)
    ids_BT = np.array([[0, 1, 2], [3, 3, 0]])
    surprise_BT, entropy_BT = score_ids(StepScorer(backend), ids_BT, 4, None)
    for row, ids_T in enumerate(ids_BT):
        for place in range(3):
            probs_K = backend.conditional(ids_T, place)
            assert surprise_BT[row, place] == pytest.approx(-math.log(probs_K[ids_T[place]]), rel=1e-6)
            assert entropy_BT[row, place] == pytest.approx(-(probs_K * np.log(probs_K)).sum(), rel=1e-6)
    assert len(backend.steps) == 2


# A bidirectional network.


@pytest.mark.parametrize("passes", [1, 2, 5, T])
def test_pseudo_likelihood_hides_every_id_once(passes):
    model = make(Causal, n_positions=T, is_causal=False)
    ids_BT = pictures(model)
    found = score_ids(TorchScorer(model), ids_BT, model.config.spec.sos, passes)
    groups = list(hidden_in_turn(passes, T))
    pairs = [scoring.pseudo_scores(parameters(model), model.config.to_dict(), ids_T, groups) for ids_T in ids_BT]
    for each, wanted in zip(found, zip(*pairs, strict=True), strict=True):
        np.testing.assert_allclose(each, np.stack(wanted), atol=1e-5, rtol=1e-5)


def test_what_a_bidirectional_network_hides_it_does_not_see():
    """The embedding of SOS, which training leaves as it was, is not in the sums either."""
    model = make(Causal, n_positions=T, is_causal=False)
    ids_BT = pictures(model)
    before = score_ids(TorchScorer(model), ids_BT, model.config.spec.sos, 3)
    with torch.no_grad():
        model.transformer.wte.weight[-1] += 100
    np.testing.assert_array_equal(before[0], score_ids(TorchScorer(model), ids_BT, model.config.spec.sos, 3)[0])


@given(st.data())
def test_the_turns_hide_each_id_once_and_about_as_many_each_time(data):
    length = data.draw(st.integers(1, 300))
    passes = data.draw(st.integers(1, length))
    turns = np.stack(list(hidden_in_turn(passes, length)))
    assert turns.shape == (passes, length)
    assert (turns.sum(0) == 1).all()
    assert np.ptp(turns.sum(1)) <= 1


def test_the_turns_are_scattered():
    assert all(np.diff(np.flatnonzero(turn)).max() > 14 for turn in hidden_in_turn(7, 1024))
    assert all(np.diff(np.flatnonzero(turn)).min() < 4 for turn in hidden_in_turn(7, 1024))


def test_how_many_passes():
    assert read_passes(None, True, T) == 1
    assert read_passes(None, False, 1024) == PASSES == 7
    assert read_passes(None, False, 3) == 3
    assert read_passes(3, False, T) == 3


@pytest.mark.parametrize(
    ("passes", "causal", "words"),
    [(1, True, "bidirectional"), (0, False, "1 to 12"), (13, False, "1 to 12"), (-1, False, "not -1")],
)
def test_passes_that_can_not_be(passes, causal, words):
    with pytest.raises(InputError, match=words):
        read_passes(passes, causal, T)


# What is told of them.


def test_sums_are_float64():
    surprise = np.full((1, 2**17), 1 + 2**-20, np.float32)
    surprise[0, 0] = 2**24
    scores = Scores(surprise, surprise, "a codec", 3)
    assert scores.log_likelihood[0] == -(2**24 + (2**17 - 1) * (1 + 2**-20))
    assert scores.log_likelihood.dtype == scores.nats_per_token.dtype == np.float64


def test_units():
    scores = Scores(np.full((2, 4), math.log(512), np.float32), np.ones((2, 4), np.float32), "a codec", 3)
    np.testing.assert_allclose(scores.nats_per_token, math.log(512), rtol=1e-6)
    np.testing.assert_allclose(scores.bits_per_dim, 3, rtol=1e-6)  # nine bits, three for each channel
    np.testing.assert_allclose(scores.mean_entropy, 1)
    assert bits_per_dim(math.log(2), 3) == pytest.approx(1 / 3)
    assert len(scores) == 2
    assert scores.method == "likelihood"
