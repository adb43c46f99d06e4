"""Changing a model's parts: resizing the palette, pruning heads, tying and replacing embeddings."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from decoding import decode
from faces import (
    HEADS,
    LAYERS,
    SOS,
    Causal,
    Classifier,
    D,
    K,
    T,
    Trunk,
    assert_equal,
    assert_same_weights,
    each_face,
    main_output,
    make,
    random_ids,
)
from imagegpt.config import ImageGPTConfig
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.engine.warp import Sampling
from imagegpt.model.loading import load_generative

GROWN, SHRUNK = K + 9, K - 7  # colours
each_size = pytest.mark.parametrize("colors", [GROWN, SHRUNK])
each_tie = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def pictures(colors, rows=2, length=T - 1, sos=None):
    """Ids below `colors`, SOS first if it is given."""
    ids = random_ids(rows, length) % colors
    return ids if sos is None else nn.functional.pad(ids, (1, 0), value=sos)


def assert_trains(model, ids):
    loss = main_output(model.train()(ids)).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.any() for p in model.parameters())


def engine_greedy(model):
    """Greedy ids by our own engine."""
    noise = np.zeros((1, model.config.n_positions))
    return decode(TorchBackend(model), np.zeros((1, 0), np.int64), np.zeros(1, int), Sampling(0), noise).tolist()


# Resizing.


@each_size
@each_face
@torch.no_grad()
def test_resizing_leaves_the_numbers_of_pictures_of_the_common_colors_as_they_were(face, colors):
    model = make(face)
    before = main_output(model(pictures(SHRUNK, sos=SOS)))
    embedding = model.resize_token_embeddings(colors + 1)
    assert embedding is model.get_input_embeddings()
    assert embedding.num_embeddings == len(embedding.weight) == model.config.vocab_size == colors + 1
    after = main_output(model(pictures(SHRUNK, sos=colors)))
    common = slice(min(colors, K) if face is Causal else None)
    assert_equal(after[..., common], before[..., common])
    assert after.shape[-1] == (colors if face is Causal else before.shape[-1])
    with pytest.raises(IndexError, match=rf"0\.\.{colors}"):
        model(torch.full((1, 1), colors + 1))


@each_tie
@each_size
def test_resized_models_train_generate_and_paint(colors, tied):
    model = make(Causal, tie_word_embeddings=tied)
    model.resize_token_embeddings(colors + 1)
    ids = pictures(colors, length=T)
    assert model.image_loss(ids).isfinite()
    torch.manual_seed(0)
    drawn = model.generate(do_sample=True, num_return_sequences=40)
    assert (drawn[:, 0] == colors).all()
    assert drawn[:, 1:].unique().tolist() == list(range(colors))
    assert engine_greedy(model) == model.generate(do_sample=False)[:, 1:].tolist()
    assert_trains(model, pictures(colors, rows=40, sos=colors))


@each_tie
@each_size
@each_face
def test_resized_models_can_be_saved_and_loaded(face, colors, tied, tmp_path):
    model = make(face, tie_word_embeddings=tied)
    model.resize_token_embeddings(colors + 1)
    model.save_pretrained(tmp_path)
    loaded, info = face.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.vocab_size == colors + 1
    assert_same_weights(loaded, model)


@each_face
def test_sizes_may_be_padded_to_a_multiple(face):
    model = make(face)
    assert model.resize_token_embeddings(20, pad_to_multiple_of=8).weight.shape == (24, D)
    assert model.resize_token_embeddings(24, pad_to_multiple_of=8).weight.shape == (24, D)
    assert model.resize_token_embeddings(pad_to_multiple_of=7).weight.shape == (28, D)
    assert model.config.vocab_size == 28
    if face is Causal:
        assert model.lm_head.weight.shape == (27, D)
    with pytest.raises(ValueError, match=r"1\.3"):
        model.resize_token_embeddings(20, pad_to_multiple_of=1.3)


@pytest.mark.parametrize("mean", [True, False])
def test_new_colors_are_like_the_mean_color_or_on_request_like_new_weights(mean):
    torch.manual_seed(0)
    model = make(Causal, initializer_range=0.5)
    with torch.no_grad():
        model.transformer.wte.weight[:-1] += 3
        model.transformer.wte.weight[-1] = 1000  # no colour
        model.lm_head.weight -= 3
    model.resize_token_embeddings(K + 201, mean_resizing=mean)
    for weight, near in ((model.transformer.wte.weight[K:-1], 3), (model.lm_head.weight[K:], -3)):
        assert weight.shape == (200, D)
        assert weight.mean().item() == pytest.approx(near if mean else 0, abs=0.1)
        assert weight.std().item() < 0.2 if mean else weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_resizing_tells_that_the_start_token_has_moved(caplog):
    with caplog.at_level(logging.WARNING):
        make(Causal).resize_token_embeddings(GROWN + 1)
    assert f"from {K} to {GROWN} colours" in caplog.text
    assert f"start token moved from id {K} to {GROWN}" in caplog.text


@each_face
def test_resizing_to_the_same_size_changes_and_tells_nothing(face, caplog):
    model, same = make(face), make(face)
    with caplog.at_level(logging.WARNING):
        for size in (None, K + 1):
            assert model.resize_token_embeddings(size) is model.get_input_embeddings()
    assert_same_weights(model, same)
    assert not caplog.text


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_palette_without_a_color_is_a_value_error(size):
    model = make(Causal)
    with pytest.raises(ValueError, match=f"^{size} ids are too few"):
        model.resize_token_embeddings(size)
    assert_same_weights(model, make(Causal))


@each_size
@each_tie
def test_resizing_again_continues_from_there(colors, tied):
    model, once = (make(Causal, tie_word_embeddings=tied) for _ in range(2))
    for size in (12, colors + 1, 7):
        model.resize_token_embeddings(size)
    once.resize_token_embeddings(7)
    assert_same_weights(model, once)


@pytest.mark.parametrize("name", ["wte", "lm_head"])
@each_size
def test_resizing_keeps_precision_and_what_is_frozen(colors, name):
    model = make(Causal).bfloat16()
    model.requires_grad_(False)
    model.resize_token_embeddings(colors + 1)
    layer = model.transformer.wte if name == "wte" else model.lm_head
    assert layer.weight.dtype == torch.bfloat16
    assert not layer.weight.requires_grad


def test_resized_weights_are_not_made_anew():
    model = make(Causal)
    model.resize_token_embeddings(GROWN + 1)
    before = copy.deepcopy(model)
    model.post_init()
    assert_same_weights(model, before)


# Pruning.


def without_heads(model, heads):
    """A copy in which those heads' values go nowhere."""
    model, width = copy.deepcopy(model), D // model.config.n_head
    for layer, gone in heads.items():
        for head in gone:
            model.base_model.h[layer].attn.c_proj.weight.data[head * width : (head + 1) * width] = 0
    return model


@pytest.mark.parametrize("heads", [{0: [0]}, {1: (1,)}, {0: [1], 1: {0}}], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@each_face
@torch.no_grad()
def test_pruned_heads_are_gone_as_by_a_head_mask_of_zeros(face, implementation, heads):
    model = make(face, attn_implementation=implementation)
    mask = torch.ones(LAYERS, HEADS)
    for layer, gone in heads.items():
        mask[layer, list(gone)] = 0
    expected = main_output(model(random_ids(), head_mask=mask))
    assert_equal(main_output(without_heads(model, heads)(random_ids())), expected)
    parameters = model.num_parameters()
    model.prune_heads(heads)
    assert_equal(main_output(model(random_ids())), expected)
    width = D // HEADS
    assert parameters - model.num_parameters() == len(heads) * (3 * (D + 1) * width + width * D)
    assert model.config.pruned_heads == {layer: list(gone) for layer, gone in heads.items()}


def test_the_heads_to_prune_may_be_any_iterable():
    model, by_list = make(Causal), make(Causal)
    model.prune_heads({0: (head for head in [1])})
    by_list.prune_heads({0: [1]})
    assert_same_weights(model, by_list)


@each_face
@torch.no_grad()
def test_heads_may_be_pruned_one_after_another_by_their_first_numbers(face):
    model, at_once = (make(face, n_head=4) for _ in range(2))
    expected = main_output(without_heads(model, {0: [0, 2]})(random_ids()))
    model.prune_heads({0: [0]})
    model.prune_heads({0: [0, 2]})  # naming the first again
    model.prune_heads({0: [2]})
    at_once.prune_heads({0: [2, 0]})
    assert model.config.pruned_heads == at_once.config.pruned_heads == {0: [0, 2]}
    assert_same_weights(model, at_once)
    assert_equal(main_output(model(random_ids())), expected)


@each_face
def test_pruned_models_can_be_saved_loaded_and_pruned_further(face, tmp_path):
    model = make(face)
    model.prune_heads({1: [0]})
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pruned_heads"] == {"1": [0]}
    loaded, info = face.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.pruned_heads == {1: [0]}
    assert_same_weights(loaded, model)
    loaded.prune_heads({0: [1]})
    model.prune_heads({0: [1]})
    assert_same_weights(loaded, model)
    loaded.save_pretrained(tmp_path)
    assert_same_weights(face.from_pretrained(tmp_path), model)
    assert make(face).config.pruned_heads is None  # other models keep their heads


@torch.no_grad()
def test_pruned_models_generate_through_their_smaller_cache_and_through_the_engine(tmp_path):
    model = make(Causal)
    reference = without_heads(model, {0: [1]})
    model.prune_heads({0: [1]})
    output = model(random_ids(), output_attentions=True)
    assert [layer.keys.shape[1] for layer in output.past_key_values.layers] == [1, 2]
    assert [probs.shape[1] for probs in output.attentions] == [1, 2]
    expected = reference.generate(do_sample=False).tolist()
    assert model.generate(do_sample=False).tolist() == expected
    assert [[SOS, *ids] for ids in engine_greedy(model)] == expected
    model.save_pretrained(tmp_path)
    loaded = load_generative(tmp_path, torch.float32, torch.device("cpu"))
    assert [[SOS, *ids] for ids in engine_greedy(loaded)] == expected


@each_face
def test_pruning_keeps_precision_and_what_is_frozen(face):
    model = make(face).bfloat16()
    model.base_model.h[0].attn.requires_grad_(False)
    model.prune_heads({0: [0], 1: [1]})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert len(frozen) == 4
    assert all("h.0.attn" in name for name in frozen)
    ids = pictures(K, rows=40, sos=SOS)
    assert_trains(model.float().requires_grad_(True), ids)


ERRORS = [
    ({LAYERS: [0]}, "layers are 0..1"),
    ({-1: [0]}, "layers are 0..1"),
    ({0: [HEADS]}, r"heads are 0..1; layer 0 has no \[2\]"),
    ({0: [-1]}, r"layer 0 has no \[-1\]"),
    ({0: [0, 1]}, "layer 0"),
    ({1: [0], 0: [5]}, "layer 0"),
    ({1: [0], 0: [0, 1]}, "layer 0"),
]


@pytest.mark.parametrize(("heads", "told"), ERRORS, ids=[str(heads) for heads, _ in ERRORS])
def test_heads_that_are_not_there_are_a_value_error_and_nothing_is_pruned(heads, told):
    model = make(Causal)
    with pytest.raises(ValueError, match=told):
        model.prune_heads(heads)
    assert_same_weights(model, make(Causal))
    assert model.config.pruned_heads is None


def test_the_last_head_of_a_layer_can_not_be_pruned():
    model = make(Causal)
    model.prune_heads({0: [0]})
    with pytest.raises(ValueError, match="layer 0"):
        model.prune_heads({0: [1]})
    assert model.config.pruned_heads == {0: [0]}


@torch.no_grad()
def test_a_head_mask_of_a_pruned_model_counts_the_first_heads():
    model, ids = make(Causal), random_ids()
    mask = torch.tensor([[0.5, 1.0], [1.0, 0.25]])
    expected = without_heads(model, {0: [1]})(ids, head_mask=mask).logits
    model.prune_heads({0: [1]})
    assert_equal(model(ids, head_mask=mask).logits, expected)


# Tying.


@torch.no_grad()
def test_a_tied_head_is_the_embedding_and_scores_no_start_token():
    model = make(Causal, tie_word_embeddings=True)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.num_parameters() == make(Trunk).num_parameters()
    logits = model(random_ids()).logits
    assert logits.shape[-1] == K
    assert_equal(logits, make(Trunk)(random_ids()).last_hidden_state @ model.transformer.wte.weight[:K].T)
    assert model.image_loss(random_ids()).isfinite()
    assert [[SOS, *ids] for ids in engine_greedy(model)] == model.generate(do_sample=False).tolist()


def test_models_are_untied_unless_asked(tmp_path):
    model = make(Causal)
    assert model.lm_head.weight.data_ptr() != model.transformer.wte.weight.data_ptr()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].shape == (K, D)


@pytest.mark.parametrize("shard", ["1GB", "10KB"])
def test_tied_weights_are_saved_once_and_tied_again(shard, tmp_path):
    model = make(Causal, tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    saved = [name for file in tmp_path.glob("*.safetensors") for name in load_file(file)]
    assert sorted(saved) == sorted(name for name in model.state_dict() if name != "lm_head.weight")
    loaded, info = Causal.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert_same_weights(loaded, model)


def test_a_trunk_s_file_makes_a_whole_tied_model(tmp_path):
    make(Trunk, tie_word_embeddings=True).save_pretrained(tmp_path)
    loaded, info = Causal.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, make(Causal, tie_word_embeddings=True))


def test_a_tied_weight_learns_from_both_its_uses():
    tied, untied = make(Causal, tie_word_embeddings=True), make(Causal)
    with torch.no_grad():
        untied.lm_head.weight.copy_(untied.transformer.wte.weight[:K])
    ids = random_ids()
    for model in (tied, untied):
        model.image_loss(ids).backward()
    both = untied.transformer.wte.weight.grad.clone()
    both[:K] += untied.lm_head.weight.grad
    assert_equal(tied.transformer.wte.weight.grad, both)


def test_the_other_faces_have_nothing_to_tie():
    for face in (Trunk, Classifier):
        assert_same_weights(make(face, tie_word_embeddings=True), make(face))


# Replacing.


@each_face
@torch.no_grad()
def test_embeddings_can_be_replaced(face):
    model, other = make(face), nn.Embedding(K + 1, D)
    assert model.get_input_embeddings() is model.base_model.wte
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is model.base_model.wte is other
    expected = make(face)(inputs_embeds=other(random_ids()))
    assert_equal(main_output(model(random_ids())), main_output(expected))


@each_face
@torch.no_grad()
def test_only_the_generative_head_is_an_output_embedding(face):
    model = make(face)
    if face is not Causal:
        assert model.get_output_embeddings() is None
        return
    assert model.get_output_embeddings() is model.lm_head
    model.set_output_embeddings(nn.Linear(D, K, bias=False))
    states = model.transformer(random_ids()).last_hidden_state
    assert_equal(model(random_ids()).logits, states @ model.get_output_embeddings().weight.T)


def test_a_replaced_embedding_is_tied_again():
    model = make(Causal, tie_word_embeddings=True)
    model.set_input_embeddings(nn.Embedding(K + 1, D))
    model.tie_weights()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_config_s_pruned_heads_make_a_smaller_model():
    model = Causal(ImageGPTConfig(**{**make(Causal).config.to_dict(), "pruned_heads": {"0": [1]}}))
    assert [block.attn.num_heads for block in model.transformer.h] == [1, 2]
