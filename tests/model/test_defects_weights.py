"""Table of defects: resize_token_embeddings, tie_word_embeddings, initialisation, old checkpoints.

How a row becomes two tests is told in tests/defects.py.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from defects import NUMBERS, TOLERANCE, K, T, defect, random_ids, with_start

assert_close = torch.testing.assert_close


# resize_token_embeddings.


@pytest.mark.parametrize("colors", [K + 5, K - 6])
@defect("resize_token_embeddings", "the head gets a row for SOS")
def test_resizing_gives_the_head_a_row_for_each_color(family, colors):
    model = family.make()
    head = model.lm_head.weight.detach().clone()
    model.resize_token_embeddings(colors + 1)
    assert model.lm_head.weight.shape == (colors, 32)
    assert model(random_ids(1, 3) % colors).logits.shape[-1] == model.config.vocab_size - 1 == colors
    kept = min(colors, K)
    assert model.lm_head.weight[:kept].equal(head[:kept])


@pytest.mark.parametrize("colors", [K + 5, K - 6])
@defect("resize_token_embeddings", "the start token's weights stay at its old id, or are cut off")
@torch.no_grad()
def test_resizing_keeps_the_start_token_last(family, colors):
    model, ids = family.make(), random_ids(2, 8) % (K - 6)
    expected = model(with_start(ids)).logits
    embedding = model.transformer.wte.weight.clone()
    model.resize_token_embeddings(colors + 1)
    kept = min(colors, K)
    assert model.transformer.wte.weight[:kept].equal(embedding[:kept])
    assert model.transformer.wte.weight[-1].equal(embedding[-1])
    got = model(torch.nn.functional.pad(ids, (1, 0), value=colors)).logits
    assert_close(got[..., :kept], expected[..., :kept], **TOLERANCE)


@pytest.mark.parametrize("colors", [K + 5, K - 6])
@defect("resize_token_embeddings", "save and load then fails", peer="RuntimeError: .*ignore_mismatched_sizes")
@torch.no_grad()
def test_resized_models_can_be_saved_and_loaded(family, colors, tmp_path):
    model, ids = family.make(), random_ids(2, 8) % (K - 6)
    model.resize_token_embeddings(colors + 1)
    model.save_pretrained(tmp_path)
    loaded = family.causal.from_pretrained(tmp_path).eval()
    assert loaded.config.vocab_size == colors + 1
    assert loaded(ids).logits.equal(model(ids).logits)


# tie_word_embeddings.


@defect("tie_word_embeddings", "the head then scores SOS")
@torch.no_grad()
def test_a_tied_head_scores_the_colors_alone(family):
    model, ids = family.make(tie_word_embeddings=True), random_ids()
    states = model.transformer(ids).last_hidden_state
    assert_close(model(ids).logits, states @ model.transformer.wte.weight[:-1].T, **TOLERANCE)


@defect("tie_word_embeddings", "SOS is sampled")
@torch.no_grad()
def test_a_tied_model_never_draws_the_start_token(family):
    model = family.make(tie_word_embeddings=True)
    torch.manual_seed(0)
    samples = model.generate(torch.full((40, 1), K), max_length=T + 1, do_sample=True)
    assert samples[:, 1:].max() < K
    assert samples[:, 1:].unique().tolist() == list(range(K))


@defect("tie_word_embeddings", "the head then scores SOS")
@torch.no_grad()
def test_tied_models_can_be_saved_and_loaded(family, tmp_path):
    model, ids = family.make(tie_word_embeddings=True), random_ids()
    model.save_pretrained(tmp_path)
    loaded, info = family.causal.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    loaded.transformer.wte.weight.mul_(0.5)  # still one and the same
    states = loaded.eval().transformer(ids).last_hidden_state
    assert_close(loaded(ids).logits, states @ model.transformer.wte.weight[:-1].T * 0.5, **TOLERANCE)


@pytest.mark.parametrize("colors", [K + 5, K - 6])
@defect("tie_word_embeddings", "the head then scores SOS")
@torch.no_grad()
def test_tied_models_can_be_resized(family, colors, tmp_path):
    model, ids = family.make(tie_word_embeddings=True), random_ids() % (K - 6)
    start = model.transformer.wte.weight[-1].clone()
    model.resize_token_embeddings(colors + 1)
    model.save_pretrained(tmp_path)
    for resized in (model, family.causal.from_pretrained(tmp_path).eval()):
        states, embedding = resized.transformer(ids).last_hidden_state, resized.transformer.wte.weight
        assert embedding[-1].equal(start)
        assert_close(resized(ids).logits, states @ embedding[:colors].T, **TOLERANCE)


# Initialisation.


@pytest.mark.parametrize("layer", ["c_attn", "c_fc"])
@defect("initialisation", "initializer_range is ignored by c_attn and c_fc")
def test_initializer_range(family, layer):
    torch.manual_seed(0)
    model = family.causal(family.config(**{**NUMBERS, "n_embd": 96}, initializer_range=0.3))
    weights = [p for name, p in model.named_parameters() if name.endswith(f"{layer}.weight")]
    assert len(weights) == 2
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.3, rel=0.03)


# Old checkpoints.


def add_masks(state):
    """What files of transformers 4 hold beside the weights: a causal mask and its fill value for each attention."""
    for name in [name for name in state if name.endswith("c_attn.weight")]:
        attention = name.removesuffix("c_attn.weight")
        state[f"{attention}bias"] = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
        state[f"{attention}masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.mark.parametrize("cross_attention", [False, True], ids=["plain", "cross-attention"])
@pytest.mark.parametrize("face", ["causal", "trunk", "classifier"])
@defect("old checkpoints", "attn.bias and attn.masked_bias are reported as unexpected")
@torch.no_grad()
def test_masks_in_a_file_are_ignored_silently(family, face, cross_attention, tmp_path):
    model, ids = family.make(face, add_cross_attention=cross_attention), random_ids()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(add_masks(load_file(file)), file, metadata={"format": "pt"})
    loaded, info = getattr(family, face).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.eval()(ids)[0].equal(model(ids)[0])


@pytest.mark.parametrize("cross_attention", [False, True], ids=["plain", "cross-attention"])
@defect("old checkpoints", "a strict load fails", peer="RuntimeError: .*\n.*Unexpected key")
@torch.no_grad()
def test_a_strict_load_ignores_masks_and_nothing_else(family, cross_attention):
    old, ids = family.make(seed=1, add_cross_attention=cross_attention), random_ids()
    model = family.make(add_cross_attention=cross_attention)
    state = add_masks(old.state_dict())
    model.load_state_dict(state)
    assert model(ids).logits.equal(old(ids).logits)
    with pytest.raises(RuntimeError, match=r"transformer\.h\.0\.attn\.scale"):
        model.load_state_dict({**state, "transformer.h.0.attn.scale": torch.ones(1)})
