from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from imagegpt.config import ImageGPTConfig
from imagegpt.model.attention import eager_attention
from imagegpt.model.heads import ImageGPTForCausalImageModeling
from imagegpt.model.layers import ImageGPTMLP, ImageGPTRMSNorm
from imagegpt.model.modeling import ImageGPTBlock, ImageGPTModel
from reference import network

K, T = 16, 64  # of tiny_model


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    copy = ImageGPTForCausalImageModeling(tiny_model.config.__class__.from_dict(tiny_model.config.to_dict())).eval()
    copy.load_state_dict(tiny_model.state_dict())
    return copy


def random_ids(rows=2, length=T, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, K, (rows, length)))


def log_probs(model, inputs):
    """In float64 from the float32 logits, by the definition."""
    with torch.no_grad():
        logits = model(inputs).logits.double().numpy()
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# Norm.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norm_equals_numpy_and_keeps_the_dtype(dtype):
    norm = ImageGPTRMSNorm(24, eps=1e-3).to(dtype)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 24))
        got = norm(x)
    expected = network.norm(x.double().numpy(), norm.weight.detach().double().numpy(), 1e-3)
    assert got.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("outliers", [24, 1])
def test_norm_in_half_precision_survives_activations_whose_squares_do_not_fit(outliers):
    x = torch.ones(2, 24, dtype=torch.float16)
    x[:, :outliers] = 1e4
    got = ImageGPTRMSNorm(24).half()(x).detach().double().numpy()
    # Not merely finite: the peer gives rows of zeros.
    np.testing.assert_allclose(got, network.norm(x.double().numpy(), 1.0, 1e-5), rtol=2e-3)


def test_norm_of_zeros_is_zero():
    assert (ImageGPTRMSNorm(8)(torch.zeros(1, 8)) == 0).all()


# Attention and MLP.


@pytest.mark.parametrize("length", [1, 7])
def test_eager_attention_equals_numpy_head_by_head(length):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 8, generator=generator)

    class Causal(torch.nn.Module):
        is_causal = True

    out_BTNH, probs = eager_attention(Causal().eval(), q, k, v, None, scaling=0.3)
    for row in range(2):
        for head in range(3):
            expected = network.attention(*(x[row, head].double().numpy() for x in (q, k, v)), 0.3)
            np.testing.assert_allclose(out_BTNH[row, :, head].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3, length))
    assert (probs.triu(1) == 0).all()


@torch.no_grad()
def test_eager_equals_sdpa_with_and_without_padding(model):
    ids, mask = random_ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[1, :4] = mask[2, 15:] = 0
    for attention_mask in (None, mask):
        model.set_attn_implementation("sdpa")
        sdpa = model(ids, attention_mask=attention_mask).logits
        model.set_attn_implementation("eager")
        eager = model(ids, attention_mask=attention_mask).logits
        counts = mask.bool() if attention_mask is not None else torch.ones_like(ids).bool()
        torch.testing.assert_close(eager[counts], sdpa[counts], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(model):
    ids, mask = random_ids(1, 20), torch.ones(1, 20, dtype=torch.long)
    mask[:, 12:] = 0
    padded = model(ids, attention_mask=mask).logits[:, :12]
    torch.testing.assert_close(padded, model(ids[:, :12]).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_on_the_left_with_its_position_ids_changes_nothing_after_it(model):
    ids = random_ids(1, 12)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = torch.tensor([[0] * 5 + [1] * 12])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    got = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(got, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_scores_too_large_for_half_precision_give_no_nan(model, implementation):
    model.half().set_attn_implementation(implementation)
    attention = model.transformer.h[0].attn
    attention.c_attn.weight[:, :64] *= 50  # queries and keys
    x = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(0)).half() * 5
    q, k, _ = attention.c_attn(x).unflatten(-1, (6, 16)).transpose(1, 2).float().chunk(3, 1)
    assert (q @ k.transpose(-1, -2)).abs().max() > 65504  # the largest that float16 can hold
    assert attention(x)[0].isfinite().all()


def test_mlp_is_two_layers_around_the_activation():
    torch.manual_seed(0)
    mlp = ImageGPTMLP(ImageGPTConfig(n_embd=16, n_head=1, n_layer=1, n_inner=10)).eval()
    x = torch.randn(3, 16)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_()
        hidden = x @ mlp.c_fc.weight + mlp.c_fc.bias
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        torch.testing.assert_close(mlp(x), hidden @ mlp.c_proj.weight + mlp.c_proj.bias)
    assert mlp.c_fc.weight.shape == (16, 10)


# Losses.


def test_image_loss_is_the_mean_over_all_ids_with_the_start_token_first(model):
    ids = random_ids()
    log_p = log_probs(model, torch.cat([torch.full((2, 1), K), ids[:, :-1]], 1))
    by_hand = [-log_p[row, t, ids[row, t]] for row in range(2) for t in range(T)]
    assert len(by_hand) == 2 * T
    assert model.image_loss(ids).item() == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_image_loss_of_a_model_that_knows_nothing_is_log_k(model):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert model.image_loss(random_ids()).item() == pytest.approx(math.log(K))


def test_labels_loss_compares_each_position_with_the_next_label_and_skips_start_and_ignored(model):
    ids, labels = random_ids(2, 20), random_ids(2, 20, seed=1)
    labels[0, 3:9], labels[1, 5], labels[1, 0] = -100, K, K
    log_p = log_probs(model, ids)
    by_hand = [-log_p[r, t, labels[r, t + 1]] for r in range(2) for t in range(19) if 0 <= labels[r, t + 1] < K]
    assert len(by_hand) == 38 - 7
    assert model(ids, labels=labels).loss.item() == pytest.approx(np.mean(by_hand), rel=1e-6)


@pytest.mark.parametrize("label", [-100, K])
def test_labels_that_are_all_ignored_give_zero_and_a_zero_gradient(model, label):
    loss = model(random_ids(1, 6), labels=torch.full((1, 6), label)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_losses_are_float32_in_half_precision(model):
    expected = model.image_loss(random_ids()).item()
    half = model.bfloat16()
    for loss in (half.image_loss(random_ids()), half(random_ids(), labels=random_ids()).loss):
        assert loss.dtype == torch.float32
    assert half.image_loss(random_ids()).item() == pytest.approx(expected, rel=0.05)


# Initialisation.


@pytest.fixture(scope="module")
def new_parameters():
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=400, n_positions=400, n_embd=64, n_layer=3, n_head=2, initializer_range=0.3)
    return dict(ImageGPTForCausalImageModeling(config).named_parameters())


def assert_normal(name, parameter, std):
    assert parameter.std().item() == pytest.approx(std, rel=0.06), name
    assert abs(parameter.mean().item()) < 0.1 * std, name


def test_new_weights_follow_initializer_range(new_parameters):
    matrices = [name for name, p in new_parameters.items() if p.dim() == 2 and "c_proj" not in name]
    assert len(matrices) == 3 + 2 * 3  # wte, wpe, lm_head; c_attn and c_fc of each block
    for name in matrices:
        assert_normal(name, new_parameters[name], 0.3)


def test_new_norms_are_ones_and_new_biases_zeros(new_parameters):
    vectors = {name: parameter for name, parameter in new_parameters.items() if parameter.dim() == 1}
    assert len(vectors) == 6 * 3 + 1
    for name, parameter in vectors.items():
        assert (parameter == (1 if ".ln_" in name else 0)).all(), name


def test_new_residual_projections_are_smaller_by_the_square_root_of_the_sublayers(new_parameters):
    for name, parameter in new_parameters.items():
        if name.endswith("c_proj.weight"):
            assert_normal(name, parameter, 0.3 / math.sqrt(2 * 3))


# Training.


def gradients(model, ids, **kwargs):
    model.zero_grad()
    model.train()
    model(ids, labels=ids, **kwargs).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize(
    ("implementation", "use_cache"),
    [
        ("eager", None),
        ("sdpa", None),
        ("sdpa", True),
        ("eager", True),
    ],
)
def test_gradient_checkpointing_gives_equal_gradients_and_recomputes(tiny_model, implementation, use_cache):
    numbers = {**tiny_model.config.to_dict(), "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = ImageGPTForCausalImageModeling(ImageGPTConfig.from_dict(numbers))
    model.load_state_dict(tiny_model.state_dict())
    model.set_attn_implementation(implementation)
    runs = []
    model.transformer.h[0].ln_1.register_forward_pre_hook(lambda *_: runs.append(1))
    plain = gradients(model, random_ids(2, 16), use_cache=use_cache)
    assert len(runs) == 1
    model.gradient_checkpointing_enable()
    recomputed = gradients(model, random_ids(2, 16), use_cache=use_cache)
    assert len(runs) == 3  # once forward, once again backward
    for one, two in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-5)


def test_a_cache_is_made_in_evaluation_and_not_in_training(model):
    assert model(random_ids(1, 4)).past_key_values.get_seq_length() == 4
    assert model(random_ids(1, 4), use_cache=False).past_key_values is None
    assert model.train()(random_ids(1, 4)).past_key_values is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_each_dropout_acts_in_training_only(tiny_model, name, implementation):
    numbers = {**tiny_model.config.to_dict(), "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, name: 0.5}
    model = ImageGPTForCausalImageModeling(ImageGPTConfig.from_dict(numbers))
    model.load_state_dict(tiny_model.state_dict())
    model.set_attn_implementation(implementation)
    ids = random_ids(1, 10)
    with torch.no_grad():
        plain = tiny_model(ids).logits
        torch.testing.assert_close(model.eval()(ids).logits, plain, atol=1e-5, rtol=1e-5)
        assert (model.train()(ids).logits - plain).abs().max() > 1e-2


# The call.


@torch.no_grad()
def test_inputs_embeds_stand_for_their_ids(model):
    ids = random_ids(2, 9)
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(ids).logits)


@torch.no_grad()
def test_position_ids_choose_the_position_embeddings(model):
    ids = random_ids(1, 5)
    later = model(ids, position_ids=torch.arange(7, 12)[None]).logits
    assert (later - model(ids).logits).abs().max() > 1e-2
    model.transformer.wpe.weight[:5] = model.transformer.wpe.weight[7:12].clone()
    torch.testing.assert_close(model(ids).logits, later)


@torch.no_grad()
def test_a_tuple_holds_what_the_output_object_holds(model):
    ids = random_ids(1, 5)
    output = model(ids, labels=ids, output_hidden_states=True)
    loss, logits, cache, hidden_states = model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert (loss, len(hidden_states), cache.get_seq_length()) == (output.loss, 3, 5)
    torch.testing.assert_close(logits, output.logits)


@torch.no_grad()
def test_the_trunk_alone_gives_the_states_that_the_head_reads(model):
    trunk = model.transformer(random_ids(2, 5))
    torch.testing.assert_close(model.lm_head(trunk.last_hidden_state), model(random_ids(2, 5)).logits)


@pytest.mark.parametrize("face", [ImageGPTModel, ImageGPTForCausalImageModeling])
def test_ids_and_embeds_both_or_neither_is_a_value_error(tiny_config, face):
    model = face(tiny_config)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(random_ids(1, 2), inputs_embeds=torch.zeros(1, 2, 32))


def test_more_ids_than_positions_is_a_value_error(model):
    assert model(random_ids(1, T)).logits.shape == (1, T, K)
    with pytest.raises(ValueError, match=r"65 ids .* 64 positions"):
        model(random_ids(1, T + 1))
    with pytest.raises(ValueError, match="65 ids"):
        model(inputs_embeds=torch.zeros(1, T + 1, 32))
    full = model(random_ids(1, T)).past_key_values
    with pytest.raises(ValueError, match="65 ids"):
        model(random_ids(1, 1), past_key_values=full)


def test_a_misspelt_argument_is_a_type_error(model):
    with pytest.raises(TypeError, match="lables"):
        model(random_ids(1, 2), lables=random_ids(1, 2))


def test_the_model_has_the_blocks_that_its_config_asks_for(tiny_model):
    assert [type(block) for block in tiny_model.transformer.h] == [ImageGPTBlock] * 2
    assert tiny_model.lm_head.weight.shape == (K, 32)  # SOS is never predicted
    assert tiny_model.transformer.wte.weight.shape == (K + 1, 32)
    assert not list(tiny_model.buffers())  # no causal masks


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_generate_reads_the_cache_of_every_kind_alike(model):
    start = torch.cat([torch.full((2, 1), K), random_ids(2, 40)], 1)
    plain = model.generate(start, max_new_tokens=10, do_sample=False, use_cache=False)
    assert plain.shape == (2, 51)
    for options in ({}, {"cache_implementation": "static"}):
        assert model.generate(start, max_new_tokens=10, do_sample=False, **options).tolist() == plain.tolist()
