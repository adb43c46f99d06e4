"""The same seeds give the same ids: a slow sampler, onnxruntime, and torch's eager, fixed and compiled steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decoding import decode, saved_onnx
from faces import Causal, make
from imagegpt.engine.onnx_graph import ACTIVATIONS
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling, uniforms
from imagegpt.pipeline import ImageGPT
from reference import sampler

T = 16
BATCHES = [1, 3, 8]
MODELS = {
    "plain": {},
    "one head": {"n_head": 1, "n_embd": 24},
    "many narrow heads": {"n_head": 5, "n_embd": 40},
    "wide heads": {"n_head": 2, "n_embd": 176, "n_layer": 1},
    "pruned heads": {"n_head": 4, "pruned": {0: [1], 1: [0, 2, 3]}},
    "tied head": {"tie_word_embeddings": True},
    "plain scores": {"scale_attn_weights": False},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    "both": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_layer": 3},
    "narrow inside": {"n_inner": 13},
    "wide inside": {"n_inner": 300},
    "two colours": {"vocab_size": 3},
    "601 colours": {"vocab_size": 602},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "one layer": {"n_layer": 1},
    "odd, all": {"n_head": 3, "n_embd": 72, "n_inner": 77, "vocab_size": 38, "tie_word_embeddings": True},
    **{name: {"activation_function": name} for name in ACTIVATIONS if name != "quick_gelu"},
}
STRATEGIES = {"greedy": {"temperature": 0}, "sampled": {"temperature": 0.9, "top_p": 0.95}}
each_given = pytest.mark.parametrize("given", [0, 1, T // 2 - 1, T - 1])


def made(name):
    numbers = dict(MODELS[name])
    pruned = numbers.pop("pruned", None)
    model = make(Causal, n_positions=T, **numbers)
    if pruned:
        model.prune_heads(pruned)
    return model


def random_prompts(rows, given, colors, seed=0):
    return np.random.default_rng(seed).integers(0, colors, (rows, given))


def noise(rows, length=T):
    return np.stack([uniforms(5, sample, length) for sample in range(rows)])


@pytest.fixture(scope="module", params=MODELS)
def model_and_backends(request, tmp_path_factory):
    model = made(request.param)
    backends = {
        "onnx": saved_onnx(model, tmp_path_factory.mktemp("model")),
        "eager": TorchBackend(model),
        "fixed": TorchBackend(model, fixed=True),
    }
    return model, backends


def assert_all_equal(model, backends, given, strategy, batches=BATCHES):
    """Each row has a prompt of its own, so the slow sampler's rows are those of every batch."""
    prompts = random_prompts(max(batches), given, model.config.vocab_size - 1)
    expected = sampler.sample(model, prompts, noise(max(batches)), **STRATEGIES[strategy])
    for name, backend in backends.items():
        for rows in batches:
            ids = decode(backend, prompts[:rows], range(rows), Sampling(**STRATEGIES[strategy]), noise(rows))
            assert ids.tolist() == expected[:rows], (name, rows)
    return expected


@each_given
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_ways_give_the_ids_of_the_slow_sampler(model_and_backends, given, strategy):
    assert_all_equal(*model_and_backends, given, strategy)


def test_samples_are_not_all_the_same():
    model = made("plain")
    ids = np.array(assert_all_equal(model, {}, 0, "sampled"))
    assert len(np.unique(ids, axis=0)) == len(ids)
    assert len(np.unique(ids)) > 8


@pytest.fixture
def forgetful():
    """torch.compile keeps a few versions of a function for a whole process."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_compiled_steps_give_the_ids_of_the_slow_sampler(forgetful):
    model = made("odd, all")
    backend = TorchBackend(model, compile=True)
    for given in (0, T // 2 - 1):
        assert_all_equal(model, {"compiled": backend}, given, "sampled", [3])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_compiled_steps_of_every_model_give_the_ids_of_the_slow_sampler(name, forgetful):
    model = made(name)
    backend = TorchBackend(model, compile=True)
    for given in (0, 1, T // 2 - 1, T - 1):
        for strategy in STRATEGIES:
            assert_all_equal(model, {"compiled": backend}, given, strategy)


# The embedded model. The slow sampler would take an hour, so each id is held against a forward over the picture.

LENGTH, NEAR = 1024, 1e-4


@pytest.fixture(scope="module")
def nano():
    return ImageGPT.from_pretrained("nano", device="cpu", backend="onnx")


@torch.no_grad()
def unfit(model, ids_BT, given, temperature, noise_BT):
    """(B, T) whether an id is not what the logits of a forward over its row ask for, even if they are a bit off.

    Two ways that pass this give the same ids, but where the logits leave it open to within `NEAR`.
    """
    wrong_BT = np.zeros(ids_BT.shape, bool)
    for row, ids in enumerate(ids_BT):
        inputs = torch.from_numpy(np.concatenate([[512], ids[:-1]]))[None]
        logits_TK = model(inputs, use_cache=False).logits[0].double().numpy()
        if temperature == 0:
            wrong_BT[row] = np.take_along_axis(logits_TK, ids[:, None], 1)[:, 0] < logits_TK.max(1) - 2 * NEAR
        else:
            weights_TK = np.exp(logits_TK - logits_TK.max(1, keepdims=True))
            ends_TK = weights_TK.cumsum(1) / weights_TK.sum(1, keepdims=True)
            end = np.take_along_axis(ends_TK, ids[:, None], 1)[:, 0]
            start = np.where(ids == 0, 0, np.take_along_axis(ends_TK, np.maximum(ids - 1, 0)[:, None], 1)[:, 0])
            wrong_BT[row] = (noise_BT[row] < start - NEAR) | (noise_BT[row] > end + NEAR)
    wrong_BT[:, :given] = False
    return wrong_BT


def check_nano(nano, backends, rows, given, temperature):
    prompts, noise_BT = random_prompts(rows, given, 512), noise(rows, LENGTH)
    results = {}
    for name, backend in backends.items():
        ids_BT = decode(backend, prompts, range(rows), Sampling(temperature), noise_BT)
        if not any(np.array_equal(ids_BT, other) for other in results.values()):
            assert not unfit(nano.model, ids_BT, given, temperature, noise_BT).any(), name
        results[name] = ids_BT
    first = results["onnx"]
    differ = {name: int((ids_BT != first).any(1).sum()) for name, ids_BT in results.items()}
    # Rounding decides once in tens of thousands of draws: of eager and onnxruntime, row 2 from nothing differs from
    # position 469 on, where the number is 1e-7 beside the border of two ids.
    assert max(differ.values()) <= max(1, rows // 4), differ


SLOW = [(0, 1), (0, 3), (0, 8), (1, 1), (1, 3), (1, 8), (511, 3), (511, 8)]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("given", "rows"),
    [(1023, 1), (1023, 3), (1023, 8), (511, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_all_ways_give_the_same_ids_on_the_embedded_model(nano, given, rows, temperature):
    backends = {"onnx": nano.backend, "eager": TorchBackend(nano.model)}
    if given == 1023 or rows > 1:
        backends["fixed"] = TorchBackend(nano.model, fixed=True)
    check_nano(nano, backends, rows, given, temperature)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "rows"), [(0, 1), (511, 3), (1, 8), (1023, 8)])
def test_compiled_steps_give_the_same_ids_on_the_embedded_model(nano, given, rows, forgetful):
    backends = {"onnx": nano.backend, "compiled": TorchBackend(nano.model, compile=True)}
    for temperature in (0, 1):
        check_nano(nano, backends, rows, given, temperature)


def test_the_check_of_ids_notices_a_wrong_one(nano):
    noise_BT = noise(1, LENGTH)
    for temperature in (0, 1):
        ids_BT = decode(nano.backend, random_prompts(1, 1000, 512), [0], Sampling(temperature), noise_BT)
        for position in (1000, 1023):
            changed = ids_BT.copy()
            changed[0, position] = (changed[0, position] + 1) % 512
            assert unfit(nano.model, changed, 1000, temperature, noise_BT)[0, position]
