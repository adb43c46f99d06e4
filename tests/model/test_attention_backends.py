"""One function whatever computes the attention: eager, sdpa, flex attention, or a function of the user's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.utils import is_flash_attn_2_available

from faces import (
    FACES,
    HEADS,
    LAYERS,
    Causal,
    D,
    T,
    Trunk,
    assert_equal,
    each_face,
    main_output,
    make,
    padding_mask,
    random_ids,
)
from imagegpt.engine.torch_backend import TorchBackend
from imagegpt.model.attention import eager_attention

BACKENDS = ["eager", "sdpa", "flex_attention"]
PADDINGS = {
    "no mask": None,
    "no padding": padding_mask("111111111111", "111111111111"),
    "left": padding_mask("...111111111", ".......11111"),
    "right": padding_mask("11111111....", "11111111111."),
    "inside": padding_mask("1111.11..111", "111111111111"),
    "all": padding_mask("............", "..1111111111"),
}
VARIANTS = [
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
]
LOWEST = torch.finfo(torch.float32).min
each_padding = pytest.mark.parametrize("mask", PADDINGS.values(), ids=PADDINGS.keys())

# Flex attention is fused by torch.compile; without it, as here, it is slow and tells so.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def register():
    """Put a function among transformers' attention functions, with one that makes its masks."""
    names = []

    def put(name, function, mask=None):
        AttentionInterface.register(name, function)
        names.append(name)
        if mask is not None:
            AttentionMaskInterface.register(name, mask)

    yield put
    for name in names:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name, None)


def by_backend(model, call, names=BACKENDS):
    """Name -> what the call gives."""
    results = {}
    for name in names:
        model.set_attn_implementation(name)
        results[name] = call(model)
    return results


def assert_backends_agree(model, call, names=BACKENDS, atol=1e-5):
    results = by_backend(model, call, names)
    for name in names[1:]:
        assert_equal(results[name], results[names[0]], atol)
    return results[names[0]]


# The same numbers.


@each_padding
@each_face
@torch.no_grad()
def test_all_backends_give_the_same_states_and_caches(face, mask):
    output = assert_backends_agree(
        make(face), lambda model: model(random_ids(), attention_mask=mask, output_hidden_states=True).to_tuple()
    )
    assert all(state.isfinite().all() for state in output[-1])


@pytest.mark.parametrize("mask", [None, PADDINGS["left"]], ids=["no mask", "left"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "+".join(variant))
@torch.no_grad()
def test_all_backends_follow_the_config_s_scaling(variant, mask):
    states = assert_backends_agree(
        make(Trunk, **variant), lambda model: model(random_ids(), attention_mask=mask).last_hidden_state
    )
    plain = make(Trunk)(random_ids(), attention_mask=mask).last_hidden_state
    if set(variant) == {"reorder_and_upcast_attn"}:  # scores are in float32 anyway
        assert_equal(states, plain)
    else:
        assert (states - plain).abs().max() > 1e-2


@pytest.mark.parametrize("variant", [{}, *VARIANTS], ids=lambda variant: "+".join(variant) or "plain")
@each_padding
def test_eager_and_sdpa_give_the_same_gradients(mask, variant):
    def gradients(model):
        model.zero_grad()
        model.train()(random_ids(), attention_mask=mask, labels=random_ids()).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    found = assert_backends_agree(make(Causal, **variant), gradients, ["eager", "sdpa"])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=lambda kernel: kernel.name)
@torch.no_grad()
def test_every_kernel_of_sdpa_gives_the_same_numbers(kernel):
    model = make(Trunk)
    expected = by_backend(model, lambda model: model(random_ids()).last_hidden_state, ["eager"])["eager"]
    model.set_attn_implementation("sdpa")
    with sdpa_kernel(kernel):
        assert_equal(model(random_ids()).last_hidden_state, expected)


@pytest.mark.parametrize("variant", [{}, *VARIANTS], ids=lambda variant: "+".join(variant) or "plain")
@pytest.mark.parametrize("mask", [None, PADDINGS["left"]], ids=["no mask", "left"])
@torch.no_grad()
def test_all_backends_agree_under_autocast(mask, variant):
    model, counts = make(Trunk, **variant), slice(None) if mask is None else mask.bool()
    full = model(random_ids(), attention_mask=mask).last_hidden_state[counts]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = by_backend(model, lambda model: model(random_ids(), attention_mask=mask).last_hidden_state[counts])
    for name, states in mixed.items():
        assert states.dtype == torch.float32, name  # the residual stream
        assert 0 < (states - full).norm() < 0.05 * full.norm(), name


def test_eager_scores_stay_in_float32_under_autocast():
    attention = make(Trunk).h[0].attn
    q, k, v = torch.randn(3, 1, HEADS, T, 16, generator=torch.Generator().manual_seed(0))
    _, full = eager_attention(attention, q, k, v, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, mixed = eager_attention(attention, q, k, v, None)
    assert torch.equal(mixed, full)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_padding
@torch.no_grad()
def test_all_backends_agree_in_half_precision(mask, dtype):
    model = make(Trunk)
    full = model(random_ids(), attention_mask=mask).last_hidden_state
    for name, states in by_backend(
        model.to(dtype), lambda model: model(random_ids(), attention_mask=mask).last_hidden_state
    ).items():
        assert states.dtype == dtype, name
        assert (states.float() - full).norm() < (0.05 if dtype == torch.bfloat16 else 5e-3) * full.norm(), name


@pytest.mark.parametrize("mask", [None, PADDINGS["left"]], ids=["no mask", "left"])
@torch.no_grad()
def test_all_backends_continue_from_a_past(mask):
    def in_steps(model):
        past, logits = None, []
        for start, end in [(0, 5), (5, 6), (6, T)]:
            seen = None if mask is None else mask[:, :end]
            output = model(random_ids()[:, start:end], past_key_values=past, attention_mask=seen)
            past = output.past_key_values
            logits.append(output.logits)
        return torch.cat(logits, 1)

    model = make(Causal)
    assert_equal(assert_backends_agree(model, in_steps), model(random_ids(), attention_mask=mask).logits)


@torch.no_grad()
def test_all_backends_attend_to_an_encoder():
    states = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    asked = {"encoder_hidden_states": states, "encoder_attention_mask": padding_mask("11...", ".1111")}
    model = make(Trunk, add_cross_attention=True)
    assert_backends_agree(model, lambda model: model(random_ids(), **asked).last_hidden_state)
    unmasked = model(random_ids(), encoder_hidden_states=states).last_hidden_state
    assert (unmasked - model(random_ids(), **asked).last_hidden_state).abs().max() > 1e-2


@pytest.mark.parametrize("name", BACKENDS)
def test_generate_gives_the_same_ids_through_every_backend(name):
    model, start = make(Causal), random_ids(2, 4)
    expected = model.generate(start, do_sample=False).tolist()
    model.set_attn_implementation(name)
    assert model.generate(start, do_sample=False).tolist() == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_the_engine_gives_the_same_logits_through_every_backend(name):
    model, ids = make(Causal), random_ids()
    expected = model(ids).logits[:, -1].detach().numpy()
    model.set_attn_implementation(name)
    # Flex attention takes no mask that is the same for all rows, as fixed steps have.
    for fixed in (False,) if name == "flex_attention" else (False, True):
        rows = TorchBackend(model, fixed=fixed).prefill(ids[:, :5].numpy(), np.arange(2))
        for column in ids[:, 5:].T:
            rows.step(column)
        np.testing.assert_allclose(rows.logits_BK.numpy(), expected, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_gives_the_same_states():
    with torch.compiler.set_stance("default"):
        for mask in (None, PADDINGS["left"]):
            assert_backends_agree(
                make(Trunk), lambda model, mask=mask: model(random_ids(), attention_mask=mask).last_hidden_state
            )


# Choosing a function.


def test_all_kinds_of_attention_functions_are_allowed():
    for face in FACES:
        flags = ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend")
        assert all(getattr(face, flag) for flag in flags)
        assert face._can_compile_fullgraph
        assert face._can_set_attn_implementation()


@each_face
def test_the_function_is_chosen_when_a_model_is_made_or_loaded_and_may_be_changed(face, tmp_path):
    assert make(face).config._attn_implementation == "sdpa"
    assert make(face, attn_implementation="eager").config._attn_implementation == "eager"
    make(face).save_pretrained(tmp_path)
    model = face.from_pretrained(tmp_path, attn_implementation="eager")
    for name in (None, "sdpa", "flex_attention", "eager"):
        model.set_attn_implementation(name) if name else None
        assert {part.config._attn_implementation for part in (model, model.base_model, model.base_model.h[0].attn)} == {
            name or "eager"
        }
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    assert model.config._attn_implementation == "eager"


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash attention is installed")
def test_flash_attention_is_refused_only_because_it_is_not_installed():
    with pytest.raises(ImportError, match="FlashAttention2"):
        make(Causal, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("variant", [{}, *VARIANTS[:2], VARIANTS[3]], ids=lambda variant: "+".join(variant) or "plain")
@each_face
def test_a_registered_function_is_called_with_our_scaling_and_told_to_be_causal(face, variant, register):
    calls = []

    def spy(module, q, k, v, mask, dropout=0.0, scaling=None, **kwargs):
        calls.append((module.layer_idx, module.is_causal, mask, dropout, scaling, sorted(kwargs)))
        assert q.shape == k.shape == v.shape == (2, HEADS, T, D // HEADS)
        return eager_attention(module, q, k, v, mask, dropout, scaling)

    register("spy", spy)
    model = make(face, attn_pdrop=0.25, **variant)
    expected = main_output(model(random_ids()))
    model.set_attn_implementation("spy")
    assert_equal(main_output(model(random_ids())), expected)
    main_output(model.train()(random_ids()))
    scale = 1.0 if "scale_attn_weights" in variant else (D // HEADS) ** -0.5
    layers = [scale / (i + 1 if "scale_attn_by_inverse_layer_idx" in variant else 1) for i in range(LAYERS)]
    per_call = [[(i, True, None, p, layers[i], []) for i in range(LAYERS)] for p in (0.0, 0.25)]
    assert calls == [*per_call[0], *per_call[1]]


@pytest.mark.parametrize("mask", [None, PADDINGS["left"], PADDINGS["right"]], ids=["no mask", "left", "right"])
@torch.no_grad()
def test_a_function_with_flash_attention_s_masks_is_given_what_it_needs(mask, register):
    def by_lengths(module, q, k, v, mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        """Flash attention reads a (B, S) mask, or none, and asks the module whether it is causal."""
        assert mask is None or mask.shape == (2, T)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        seen = seen.tril(k.shape[2] - q.shape[2]) if module.is_causal else seen
        seen = seen if mask is None else seen & mask[:, None, None].bool()
        return eager_attention(module, q, k, v, seen, dropout, scaling)

    register("by_lengths", by_lengths, flash_attention_mask)
    model = make(Causal)
    counts = slice(None) if mask is None else mask.bool()
    results = by_backend(model, lambda m: m(random_ids(), attention_mask=mask).logits[counts], ["sdpa", "by_lengths"])
    assert_equal(*results.values())


def test_arguments_of_flash_attention_reach_the_function(register):
    told = []
    register("listener", lambda *args, **kwargs: told.append(kwargs["cu_seq_lens_q"]) or eager_attention(*args))
    model, lengths = make(Trunk, attn_implementation="listener"), torch.tensor([0, T, 2 * T], dtype=torch.int32)
    model(random_ids(), cu_seq_lens_q=lengths)
    assert len(told) == LAYERS
    assert told[0] is lengths


# Without causality.


@pytest.mark.parametrize("mask", [PADDINGS[name] for name in ("no mask", "left", "right")], ids=["no", "left", "right"])
@each_face
@torch.no_grad()
def test_a_model_that_is_not_causal_sees_all_ids_that_are_no_padding(face, mask):
    model = make(face)
    causal = main_output(model(random_ids(), attention_mask=mask))
    seen = (torch.ones(2, T) if mask is None else mask).bool()
    everywhere = seen[:, None, None, :].expand(-1, 1, T, -1)
    places = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    by_mask = model.base_model(random_ids(), attention_mask=everywhere, position_ids=places).last_hidden_state
    model.config.is_causal = False
    found = assert_backends_agree(
        model, lambda model: model.base_model(random_ids(), attention_mask=mask).last_hidden_state[seen]
    )
    assert_equal(found, by_mask[seen])
    assert (main_output(model(random_ids(), attention_mask=mask)) - causal).abs().max() > 1e-2
    attentions = model(random_ids(), attention_mask=mask, output_attentions=True).attentions
    assert all(((probs > 0) == everywhere).all() for probs in attentions)


def test_a_config_may_say_that_a_model_is_not_causal_and_keeps_it(tmp_path):
    make(Trunk, is_causal=False).save_pretrained(tmp_path)
    changed = random_ids()
    changed[:, -1] += 1
    model = Trunk.from_pretrained(tmp_path)
    assert not model.h[0].attn.is_causal
    states = [model(ids).last_hidden_state for ids in (random_ids(), changed % 16)]
    assert ((states[0] - states[1]).abs().amax(-1) > 1e-4).all()


# Masks.


def ready_masks(mask):
    """The (B, 1, T, T) masks that say the same as a (B, T) one: bool, and two kinds of numbers."""
    seen = torch.ones(T, T, dtype=torch.bool).tril() & mask[:, None, None].bool()
    return [seen, *(torch.zeros(seen.shape).masked_fill(~seen, value) for value in (LOWEST, -torch.inf))]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["bool", "lowest numbers", "minus infinity"])
@pytest.mark.parametrize("name", BACKENDS)
@each_face
@torch.no_grad()
def test_ready_masks_say_the_same_as_those_of_ids(face, name, kind):
    model, mask = make(face, attn_implementation=name).base_model, PADDINGS["right"]
    expected = model(random_ids(), attention_mask=mask).last_hidden_state
    assert_equal(model(random_ids(), attention_mask=ready_masks(mask)[kind]).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@torch.no_grad()
def test_ready_masks_may_differ_by_head_and_may_be_biases(name):
    model = make(Trunk, attn_implementation=name)
    bias = torch.randn(2, HEADS, T, T, generator=torch.Generator().manual_seed(0))
    bias = bias.masked_fill(torch.ones(T, T).triu(1).bool(), LOWEST)
    plain = model(random_ids(), attention_mask=torch.zeros_like(bias).masked_fill(bias == LOWEST, LOWEST))
    assert_equal(plain.last_hidden_state, model(random_ids()).last_hidden_state)
    got = model(random_ids(), attention_mask=bias, output_attentions=True)
    model.h[0].attn.register_forward_pre_hook(lambda module, args: scores.append(args[0]))
    scores = []
    model(random_ids())
    q, k, _ = model.h[0].attn.c_attn(scores[0]).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
    assert_equal(got.attentions[0], (q @ k.transpose(-1, -2) / (D // HEADS) ** 0.5 + bias).softmax(-1))
    assert_equal(model(random_ids(), attention_mask=bias).last_hidden_state, got.last_hidden_state)


def test_the_lowest_number_of_half_precision_hides_a_key_whatever_its_score():
    attention = make(Trunk).h[0].attn
    q, k, v = torch.randn(3, 1, HEADS, T, 16, generator=torch.Generator().manual_seed(0)).half() * 300
    bias = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), torch.finfo(torch.float16).min).half()
    assert (q.float() @ k.float().transpose(-1, -2)).max() > 2 * 65504
    _, probs = eager_attention(attention, q, k, v, bias, scaling=1.0)
    assert (probs.triu(1) == 0).all()


@pytest.mark.parametrize("name", BACKENDS)
@torch.no_grad()
def test_masks_of_ids_may_be_of_any_kind_of_number(name):
    model = make(Causal, attn_implementation=name)
    expected = model(random_ids(), attention_mask=PADDINGS["left"]).logits
    for dtype in (torch.bool, torch.int32, torch.uint8, torch.float32):
        assert_equal(model(random_ids(), attention_mask=PADDINGS["left"].to(dtype)).logits, expected)


@pytest.mark.parametrize("name", BACKENDS)
@torch.no_grad()
def test_rows_that_see_nothing_get_nothing_from_attention(name):
    model, added = make(Trunk, attn_implementation=name), []
    model.h[0].attn.register_forward_hook(lambda module, args, output: added.append(output[0]))
    model(random_ids(), attention_mask=PADDINGS["all"])
    bias = model.h[0].attn.c_proj.bias
    assert_equal(added[0][0], bias.expand(T, -1))
    assert_equal(added[0][1, :2], bias.expand(2, -1))
    assert ((added[0][1, 2:] - bias).abs().amax(-1) > 1e-2).all()
    probs = model(random_ids(), attention_mask=PADDINGS["all"], output_attentions=True).attentions[0]
    assert (probs[0] == 0).all()
    assert_equal(probs[1, :, 2:].sum(-1), torch.ones(HEADS, T - 2))


@pytest.mark.parametrize("shape", [(2, T - 1), (2, 1), (2, T, T), (3, T)], ids=str)
def test_a_mask_that_does_not_fit_the_ids_is_a_value_error(shape):
    with pytest.raises(ValueError, match="attention_mask"):
        make(Causal)(random_ids(), attention_mask=torch.ones(shape, dtype=torch.long))
