"""The attention of one place against the whole maps, ours and transformers', and what must hold of any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as PeerConfig
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Peer

import imagegpt
from decoding import parameters
from faces import SOS, Causal, K, T, make
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import save_preprocessor
from imagegpt.engine import torch_attention
from imagegpt.engine.attention import Attention, read_place
from imagegpt.engine.torch_attention import attend
from imagegpt.errors import InputError
from imagegpt.model import attention as model_attention
from imagegpt.pipeline import ImageGPT
from reference import network

LAYERS = 3
MODELS = {
    "plain": {},
    "one head": {"n_head": 1},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
    "plain scores": {"scale_attn_weights": False},
    "tied head": {"tie_word_embeddings": True},
    "pruned heads": {"n_head": 4, "pruned": {0: [1], 2: [0, 2, 3]}},
}
PLACES = [0, 1, 5, T - 2, T - 1]
each_place = pytest.mark.parametrize("place", PLACES)
each_model = pytest.mark.parametrize("name", MODELS)


def made(name="plain", causal=True):
    numbers = dict(MODELS[name])
    pruned = numbers.pop("pruned", None)
    model = make(Causal, **{"n_layer": LAYERS, **numbers})
    if pruned:
        model.prune_heads(pruned)
    model.config.is_causal = causal
    return model


def ids_of(length=T, colors=K, seed=0):
    return np.random.default_rng(seed).integers(0, colors, length)


def kept_heads(model, layer):
    return sorted(set(range(model.config.n_head)) - set((model.config.pruned_heads or {}).get(layer, ())))


@torch.no_grad()
def whole_maps(model, ids_T, place):
    """Shares of the ids, of SOS, and the logits, from the maps of all places to all."""
    causal = getattr(model.config, "is_causal", True)
    x_TD = model.transformer.wte(torch.from_numpy(ids_T)).clone()
    if causal:
        start = model.transformer.wte(torch.tensor([model.config.vocab_size - 1]))
        x_TD = torch.cat([start, x_TD[:-1]])
    else:
        x_TD[place] = 0  # nothing but the position is seen
    found = model(inputs_embeds=x_TD[None], output_attentions=True, use_cache=False, return_dict=True)
    weights = np.zeros((model.config.n_layer, model.config.n_head, len(ids_T)), np.float32)
    start = np.zeros(weights.shape[:2], np.float32)
    for layer, maps in enumerate(found.attentions):
        rows = maps[0, :, place].numpy()
        for head, row in zip(kept_heads(model, layer), rows, strict=True):
            if causal:
                assert not row[place + 1 :].any()
                start[layer, head], weights[layer, head, :place] = row[0], row[1 : place + 1]
            else:
                weights[layer, head] = row
                start[layer, head], weights[layer, head, place] = row[place], 0
    return weights, start, found.logits[0, place].softmax(0).numpy()


def close(found, expected, atol=2e-6):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32 and one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


@each_model
@each_place
def test_it_is_the_row_of_the_whole_maps(name, place):
    model, ids_T = made(name), ids_of()
    close(attend(model, ids_T, place), whole_maps(model, ids_T, place))


@each_model
@each_place
def test_of_a_bidirectional_network_too(name, place):
    model, ids_T = made(name, causal=False), ids_of()
    found = attend(model, ids_T, place)
    close(found, whole_maps(model, ids_T, place))
    assert (found[1] > 0).sum() == sum(len(kept_heads(model, layer)) for layer in range(LAYERS))
    hidden_T = np.arange(T) == place
    logits_TK = network.logits(parameters(model), model.config.to_dict(), ids_T, hidden_T, causal=False)
    np.testing.assert_allclose(found[2], np.exp(logits_TK[place]) / np.exp(logits_TK[place]).sum(), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("pruned heads", "tied head")])
def test_it_is_what_transformers_own_model_says(name):
    ours, ids_T = made(name), ids_of()
    known = {key: value for key, value in ours.config.to_dict().items() if key not in ("dtype", "is_causal")}
    peer = Peer(PeerConfig(**known)).eval()
    _, unexpected = peer.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    inputs = torch.from_numpy(np.concatenate([[SOS], ids_T[:-1]]))[None]
    with torch.no_grad():
        told = peer(inputs, output_attentions=True, return_dict=True)
    for place in PLACES:
        weights_LNT, start_LN, expected_K = attend(ours, ids_T, place)
        rows = np.stack([maps[0, :, place].numpy() for maps in told.attentions])
        np.testing.assert_allclose(start_LN, rows[:, :, 0], atol=2e-6)
        np.testing.assert_allclose(weights_LNT[:, :, :place], rows[:, :, 1 : place + 1], atol=2e-6)
        np.testing.assert_allclose(expected_K, told.logits[0, place].softmax(0).numpy(), atol=2e-6)


@pytest.mark.parametrize("causal", [True, False])
@each_model
def test_the_shares_of_each_head_sum_to_one(name, causal):
    model, ids_T = made(name, causal), ids_of()
    there = [[head in kept_heads(model, layer) for head in range(model.config.n_head)] for layer in range(LAYERS)]
    for place in range(T):
        weights_LNT, start_LN, expected_K = attend(model, ids_T, place)
        np.testing.assert_allclose(weights_LNT.sum(2) + start_LN, np.array(there, float), atol=1e-6)
        assert not weights_LNT[:, :, place:].any() if causal else not weights_LNT[:, :, place].any()
        assert expected_K.shape == (K,) and expected_K.sum() == pytest.approx(1, abs=1e-6)
        shaped = Attention((0, place), weights_LNT[:, :, None], start_LN, expected_K)
        np.testing.assert_array_equal(shaped.heads, there)


@each_place
def test_later_ids_make_no_difference(place):
    model, ids_T = made(), ids_of()
    other_T = np.concatenate([ids_T[:place], ids_of(seed=1)[place:]])
    close(attend(model, ids_T, place), attend(model, other_T, place), atol=0)


def test_the_first_id_is_told_by_the_start_alone():
    weights_LNT, start_LN, expected_K = attend(made(), ids_of(), 0)
    assert not weights_LNT.any() and (start_LN == 1).all()
    with torch.no_grad():
        logits = made()(torch.tensor([[SOS]]), return_dict=True).logits[0, 0]
    np.testing.assert_allclose(expected_K, logits.softmax(0).numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("causal", [True, False])
def test_every_dtype(dtype, causal):
    model, ids_T = made(causal=causal), ids_of()
    exact = attend(model, ids_T, T - 1)
    found = attend(model.to(dtype), ids_T, T - 1)
    close(found, exact, atol=1e-5 if dtype == torch.float64 else 0.05)
    np.testing.assert_allclose(found[0].sum(2) + found[1], 1, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_no_map_of_all_places_is_made(monkeypatch, causal):
    queries, eager = [], model_attention.eager_attention
    model, ids_T = made(causal=causal), ids_of()
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(
        model_attention, "eager_attention", lambda *args, **kw: queries.append(args[1].shape[2]) or eager(*args, **kw)
    )
    attend(model, ids_T, 7)
    assert queries == [1] * LAYERS


def test_the_states_of_a_layer_are_kept_once():
    states, first, later = torch_attention._LayerStates(), torch.zeros(1), torch.ones(1)
    assert states.update(first, first, 0) == (first, first)
    assert states.update(later, later, 0) == (first, first)


# Through the pipeline.


def noise(shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_in_any_codec(either_folder):
    model = ImageGPT.from_pretrained(either_folder, device="cpu")
    picture = noise((20, 30, 3))
    [ids_T] = model.encode(picture)
    assert model.grid == (8, 8)
    for at in [(0, 0), (2, 5), (7, 7)]:
        seen = model.attention(picture, at)
        assert isinstance(seen, imagegpt.Attention) and seen.at == at
        weights, start, expected = whole_maps(model.model, ids_T, 8 * at[0] + at[1])
        close((seen.weights, seen.start, seen.expected), (weights.reshape(2, 2, 8, 8), start, expected))
        assert not seen.weights.reshape(2, 2, 64)[:, :, 8 * at[0] + at[1] :].any()
        assert seen.heads.all()


def test_the_embedded_model():
    model = ImageGPT.from_pretrained("nano", device="cpu")
    picture = noise((32, 32, 3))
    seen = model.attention(picture, (3, 7))
    weights, start, expected = whole_maps(model.model, model.encode(picture)[0], 3 * 32 + 7)
    close((seen.weights, seen.start, seen.expected), (weights.reshape(8, 3, 32, 32), start, expected), atol=1e-5)
    scores = model.score(picture)
    place = seen.expected[model.encode(picture)[0, 3 * 32 + 7]]
    assert -np.log(place) == pytest.approx(scores.surprise[0, 3 * 32 + 7], rel=1e-4)


@pytest.mark.parametrize("grid", [(4, 16), (16, 4), (1, 64)])
def test_a_grid_that_is_not_square(folder, grid):
    palette = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    save_preprocessor(folder, palette, Framing(*grid))
    model = ImageGPT.from_pretrained(folder, device="cpu")
    picture = noise((*grid, 3))
    at = (grid[0] - 1, grid[1] // 2)
    seen, place = model.attention(picture, at), at[0] * grid[1] + at[1]
    assert seen.weights.shape == (2, 2, *grid)
    weights, _, _ = whole_maps(model.model, model.encode(picture)[0], place)
    np.testing.assert_allclose(seen.weights, weights.reshape(2, 2, *grid), atol=2e-6)
    assert seen.weights[:, :, at[0], : at[1]].all() and not seen.weights[:, :, at[0], at[1] :].any()


def test_a_bidirectional_model_s_folder(folder):
    model = ImageGPT.from_pretrained(folder, device="cpu").model
    model.config.is_causal = False
    model.save_pretrained(folder)
    seen = ImageGPT.from_pretrained(folder, device="cpu").attention(noise(), (3, 3))
    np.testing.assert_allclose(seen.weights.sum((2, 3)) + seen.start, 1, atol=1e-6)
    assert seen.weights[:, :, 7, 7].all() and not seen.weights[:, :, 3, 3].any() and seen.start.all()


@pytest.mark.parametrize("how", [{"precision": "int8"}, {"backend": "onnx"}, {"backend": "torch"}])
def test_whatever_draws_it_is_float32_in_torch(tiny_folder, how):
    plain = ImageGPT.from_pretrained(tiny_folder, device="cpu").attention(noise(), (4, 4))
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu", **how)
    seen = model.attention(noise(), (4, 4))
    assert model.model.dtype == torch.float32
    np.testing.assert_array_equal(seen.weights, plain.weights)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(tiny_folder, precision):
    plain = ImageGPT.from_pretrained(tiny_folder, device="cpu").attention(noise(), (4, 4))
    seen = ImageGPT.from_pretrained(tiny_folder, device="cpu", precision=precision).attention(noise(), (4, 4))
    close((seen.weights, seen.start, seen.expected), (plain.weights, plain.start, plain.expected), atol=0.1)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ((8, 0), "row of 0 to 7 and a column of 0 to 7, not 8, 0"),
        ((0, 8), "not 0, 8"),
        ((-1, 0), "not -1, 0"),
        ((0, -1), "not 0, -1"),
        ((1.0, 2), "two whole numbers"),
        ((1,), "two whole numbers"),
        ((1, 2, 3), "two whole numbers"),
        (5, "two whole numbers"),
        ("ab", "two whole numbers"),
        (None, "two whole numbers"),
    ],
)
def test_no_such_place(tiny_folder, at, words):
    with pytest.raises(InputError, match=words):
        ImageGPT.from_pretrained(tiny_folder, device="cpu").attention(noise(), at)


def test_places_of_other_whole_numbers():
    place = read_place(np.array([1, 2]), (4, 4))
    assert place == (1, 2) and all(type(number) is int for number in place)


def test_what_is_no_picture(tiny_folder):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    for wrong in ("none.png", [noise(), noise()], noise((2, 8, 8, 3))):
        with pytest.raises(InputError):
            model.attention(wrong, (0, 0))


def test_what_is_no_number_is_told(folder):
    opened = ImageGPT.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        opened.model.transformer.wpe.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"no number in fp32"):
        opened.attention(noise(), (1, 1))
