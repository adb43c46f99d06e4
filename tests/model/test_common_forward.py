"""What a call of any transformers model must do, for each of the three classes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from faces import (
    CLASSES,
    FACES,
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
    each_face,
    labels_for,
    main_output,
    make,
    padding_mask,
    random_ids,
)

OPTIONS = [
    {},
    {"use_cache": False},
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"output_hidden_states": True, "output_attentions": True},
    {"head_mask": torch.tensor([1.0, 0.5])},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")


# The outputs.


@each_face
@torch.no_grad()
def test_two_calls_give_the_same_numbers(face):
    model = make(face, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)  # none of which acts in evaluation
    assert torch.equal(main_output(model(random_ids())), main_output(model(random_ids())))


@each_option
@each_face
@torch.no_grad()
def test_a_row_of_a_batch_gives_what_it_gives_alone(face, options):
    model, ids = make(face), random_ids(3)
    batch = model(ids, **options)
    for row in range(3):
        alone = model(ids[row : row + 1], **options)
        assert batch.keys() == alone.keys()
        for name in set(alone) - {"past_key_values"}:
            parts = batch[name] if isinstance(batch[name], tuple) else [batch[name]]
            own = alone[name] if isinstance(alone[name], tuple) else [alone[name]]
            assert_equal([part[row : row + 1] for part in parts], list(own))


@pytest.mark.parametrize("with_labels", [False, True])
@each_option
@each_face
@torch.no_grad()
def test_a_tuple_holds_the_outputs_in_order_and_leaves_out_what_is_not_asked_for(face, options, with_labels):
    model, ids = make(face), random_ids()
    if with_labels and face is not Trunk:
        options = {**options, "labels": labels_for(face, ids)}
    output = model(ids, **options)
    as_tuple = model(ids, return_dict=False, **options)
    assert type(as_tuple) is tuple
    names = ["loss"] if "labels" in options else []
    names += ["last_hidden_state" if face is Trunk else "logits"]
    names += [] if options.get("use_cache") is False else ["past_key_values"]
    names += [name for name in ("hidden_states", "attentions") if f"output_{name}" in options]
    assert [name for name in output if name != "pooler_output"] == names  # which is no entry of the documented tuple
    assert_equal(as_tuple, tuple(output[name] for name in names))


@each_face
@torch.no_grad()
def test_the_config_may_ask_for_tuples_states_and_attentions(face):
    model = make(face, return_dict=False, output_hidden_states=True, output_attentions=True)
    first, _, states, attentions = model(random_ids())
    assert (len(states), len(attentions)) == (LAYERS + 1, LAYERS)
    assert torch.equal(main_output(model(random_ids(), return_dict=True)), first)
    plain = model(random_ids(), return_dict=True, output_hidden_states=False, output_attentions=False)
    assert plain.hidden_states is plain.attentions is None


@torch.no_grad()
def test_the_image_loss_is_the_same_where_the_config_asks_for_tuples():
    model = make(Causal)
    expected = model.image_loss(random_ids())
    model.config.return_dict = False
    assert torch.equal(model.image_loss(random_ids()), expected)


@each_face
@torch.no_grad()
def test_hidden_states_are_the_inputs_of_the_blocks_and_the_normed_output(face):
    model, ids = make(face), random_ids()
    states = model(ids, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(2, T, D)] * (LAYERS + 1)
    trunk = model.base_model
    x = trunk.wte(ids) + trunk.wpe.weight
    for state, block in zip(states[:-1], trunk.h, strict=True):
        assert_equal(state, x)
        x = block(x)[0]
    assert_equal(states[-1], trunk.ln_f(x))


@each_face
@torch.no_grad()
def test_the_last_hidden_state_is_the_last_of_the_hidden_states(face):
    model, ids = make(face), random_ids()
    last = model(ids, output_hidden_states=True).hidden_states[-1]
    head = {Trunk: lambda x: x, Causal: lambda x: model.lm_head(x), Classifier: lambda x: model.score(x.mean(1))}[face]
    assert_equal(head(last), main_output(model(ids)))


@each_face
@torch.no_grad()
def test_attentions_are_causal_distributions_over_the_ids(face):
    attentions = make(face)(random_ids(), output_attentions=True).attentions
    assert len(attentions) == LAYERS
    for probs in attentions:
        assert probs.shape == (2, HEADS, T, T)
        assert_equal(probs.sum(-1), torch.ones(2, HEADS, T))
        assert (probs >= 0).all()
        assert (probs.triu(1) == 0).all()
        assert (probs.tril() > 0).sum() == 2 * HEADS * T * (T + 1) / 2


@torch.no_grad()
def test_attentions_are_the_weights_of_the_values():
    model, seen = make(Trunk), []
    attention = model.h[1].attn
    attention.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
    probs = model(random_ids(), output_attentions=True).attentions[1]
    ((x, output),) = seen
    values = attention.c_attn(x)[..., 2 * D :].unflatten(-1, (HEADS, -1))
    by_hand = torch.einsum("bnts,bsnh->btnh", probs, values).flatten(-2)
    assert_equal(attention.c_proj(by_hand), output)


@torch.no_grad()
def test_attentions_of_a_later_step_reach_back_over_the_past():
    model, ids = make(Causal), random_ids()
    whole = model(ids, output_attentions=True).attentions
    past = model(ids[:, :7]).past_key_values
    later = model(ids[:, 7:], past_key_values=past, output_attentions=True).attentions
    assert_equal(later, tuple(probs[:, :, 7:] for probs in whole))


@each_face
@torch.no_grad()
def test_attentions_are_the_same_whatever_the_attention_function(face):
    model, ids = make(face), random_ids()
    got = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        got[name] = model(ids, output_attentions=True, output_hidden_states=True)
        assert_equal(main_output(got[name]), main_output(model(ids)))
    assert_equal(got["sdpa"].to_tuple(), got["eager"].to_tuple())


@pytest.mark.parametrize("face", [Trunk, Causal])
@torch.no_grad()
def test_cross_attentions_are_distributions_over_the_encoder_s_ids(face):
    model = make(face, add_cross_attention=True)
    states = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    mask = padding_mask("11...", "11111")
    asked = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    output = model(random_ids(), output_attentions=True, **asked)
    assert [len(output.attentions), len(output.cross_attentions)] == [LAYERS, LAYERS]
    for probs in output.cross_attentions:
        assert probs.shape == (2, HEADS, T, 5)
        assert_equal(probs.sum(-1), torch.ones(2, HEADS, T))
        assert (probs[0, :, :, 2:] == 0).all()
        assert (probs[1] > 0).all()
    assert_equal(model(random_ids(), output_attentions=True, return_dict=False, **asked)[-1], output.cross_attentions)


@each_face
def test_gradients_reach_hidden_states_and_attentions(face):
    output = make(face)(random_ids(), output_hidden_states=True, output_attentions=True)
    kept = [*output.hidden_states[:-1], *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    main_output(output).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in kept)


# The inputs.


@each_face
def test_the_main_input_is_the_first_argument(face):
    assert list(inspect.signature(face.forward).parameters)[1] == face.main_input_name == "input_ids"


@each_face
@torch.no_grad()
def test_inputs_embeds_equal_their_ids_under_padding_too(face):
    model, ids = make(face), random_ids()
    others = {"attention_mask": padding_mask("...111111111", "1111111....."), "token_type_ids": random_ids(seed=1)}
    assert_equal(main_output(model(inputs_embeds=model.get_input_embeddings()(ids))), main_output(model(ids)))
    by_embeds = model(inputs_embeds=model.get_input_embeddings()(ids), **others)
    assert torch.equal(main_output(by_embeds), main_output(model(ids, **others)))


@each_face
@torch.no_grad()
def test_token_type_ids_add_their_embeddings(face):
    model, ids, types = make(face), random_ids(), random_ids(seed=1)
    wte = model.get_input_embeddings()
    got = main_output(model(ids, token_type_ids=types))
    assert_equal(got, main_output(model(inputs_embeds=wte(ids) + wte(types))))
    assert (got - main_output(model(ids))).abs().max() > 0.1


@each_face
@torch.no_grad()
def test_positions_count_from_zero_and_may_be_chosen_for_each_row(face):
    model, ids = make(face), random_ids(length=5)
    counted, later = torch.arange(5)[None], torch.arange(4, 9)[None]
    assert_equal(main_output(model(ids, position_ids=counted)), main_output(model(ids)))
    both = main_output(model(ids, position_ids=torch.cat([counted, later])))
    assert_equal(both[0], main_output(model(ids))[0])
    assert_equal(both[1], main_output(model(ids, position_ids=later))[1])
    assert (both[1] - main_output(model(ids))[1]).abs().max() > 0.1


@each_face
@torch.no_grad()
def test_cache_position_places_the_ids_where_position_ids_do_not(face):
    model, ids, places = make(face), random_ids(length=5), torch.arange(4, 9)
    expected = main_output(model(ids, position_ids=places[None]))
    assert_equal(main_output(model(ids, cache_position=places)), expected)
    assert_equal(main_output(model(ids, position_ids=places[None], cache_position=torch.arange(5))), expected)


@each_face
@torch.no_grad()
def test_no_id_sees_a_later_one(face):
    model, ids = make(face).base_model, random_ids()
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % K
    before, after = (model(given).last_hidden_state for given in (ids, changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert ((before - after)[:, 7:].abs().amax(-1) > 1e-3).all()


@each_face
@torch.no_grad()
def test_special_tokens_in_the_config_change_nothing(face):
    ids = random_ids()
    special = make(face, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    assert torch.equal(main_output(special(ids)), main_output(make(face)(ids)))


@pytest.mark.parametrize("padded", ["....11111111", "11111111....", "..11111111.."])
@torch.no_grad()
def test_a_classifier_ignores_padding_on_either_side(padded):
    model, ids, mask = make(Classifier), random_ids(1), padding_mask(padded)
    junk = torch.where(mask.bool(), ids, SOS)
    alone = model(ids[:, mask[0].bool()]).logits
    for kind in (torch.long, torch.bool, torch.float32):
        assert_equal(model(junk, attention_mask=mask.to(kind)).logits, alone)
    assert (model(junk).logits - alone).abs().max() > 1e-2


@torch.no_grad()
def test_a_classifier_of_a_row_that_is_all_padding_is_finite():
    model, mask = make(Classifier), padding_mask("............", "111111111111")
    logits = model(random_ids(), attention_mask=mask).logits
    assert (logits[0] == 0).all()  # the mean of nothing
    assert_equal(logits[1:], model(random_ids()[1:]).logits)


# Head masks.


def without_head(model, layer, head):
    """A copy in which that head's values go nowhere."""
    model = copy.deepcopy(model)
    width = D // HEADS
    model.base_model.h[layer].attn.c_proj.weight.data[head * width : (head + 1) * width] = 0
    return model


@each_face
@torch.no_grad()
def test_a_head_mask_of_ones_changes_nothing_in_any_of_its_forms(face):
    model, ids = make(face), random_ids()
    for shape in [(HEADS,), (LAYERS, HEADS), (LAYERS, 1, HEADS, 1, 1), (LAYERS, 2, HEADS, T, T)]:
        assert_equal(main_output(model(ids, head_mask=torch.ones(shape))), main_output(model(ids)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@each_face
@torch.no_grad()
def test_a_zero_in_the_head_mask_takes_that_head_s_part_away(face, implementation):
    model, ids = make(face), random_ids()
    model.set_attn_implementation(implementation)
    mask = torch.ones(LAYERS, HEADS)
    mask[1, 0] = 0
    expected = main_output(without_head(model, 1, 0)(ids))
    assert_equal(main_output(model(ids, head_mask=mask)), expected)
    assert_equal(main_output(model(ids, head_mask=mask[:, None, :, None, None])), expected)
    both = without_head(without_head(model, 1, 0), 0, 0)
    assert_equal(main_output(model(ids, head_mask=torch.tensor([0, 1]))), main_output(both(ids)))
    assert (expected - main_output(model(ids))).abs().max() > 1e-2


@torch.no_grad()
def test_a_head_mask_is_a_factor_of_the_attentions():
    model, ids = make(Trunk), random_ids()
    factors = torch.rand(LAYERS, 2, HEADS, T, T, generator=torch.Generator().manual_seed(0))
    masked = model(ids, head_mask=factors, output_attentions=True).attentions[0]
    assert_equal(masked, model(ids, output_attentions=True).attentions[0] * factors[0])


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (1, HEADS),
        (LAYERS + 1, HEADS),
        (LAYERS, 1, HEADS),
        (1,),
        (HEADS + 1,),
        (LAYERS, 1),
        (LAYERS, HEADS + 1),
        (LAYERS, 1, HEADS + 1, 1, 1),
    ],
    ids=str,
)
def test_a_head_mask_of_another_shape_is_a_value_error(shape):
    with pytest.raises(ValueError, match="head_mask must have the shape"):
        make(Causal)(random_ids(), head_mask=torch.ones(shape))


# Objects and numbers.


@each_face
@torch.no_grad()
def test_models_and_their_outputs_can_be_copied_and_pickled(face):
    model, asked = make(face), {"output_hidden_states": True, "output_attentions": True}
    output = model(random_ids(), **asked)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(other(random_ids(), **asked).to_tuple(), output.to_tuple(), atol=0)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}
    for other in (copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert type(other) is type(output)
        assert_equal(other.to_tuple(), output.to_tuple(), atol=0)


@each_face
def test_shapes_and_devices_on_the_meta_device(face):
    with torch.device("meta"):
        model = make(face)
        output = model(torch.zeros(3, 7, dtype=torch.long))
    assert main_output(output).is_meta
    assert main_output(output).shape == {Trunk: (3, 7, D), Causal: (3, 7, K), Classifier: (3, CLASSES)}[face]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("outliers", [1, D])
@each_face
@torch.no_grad()
def test_half_precision_follows_float32_at_activations_of_ten_thousand(face, outliers, implementation):
    model, ids = make(face), random_ids()
    model.base_model.wpe.weight[:, :outliers] += 1e4
    model.set_attn_implementation(implementation)
    for parameter in model.parameters():  # the same weights in both, so that only the arithmetic differs
        parameter.copy_(parameter.half())
    expected = model(ids, output_hidden_states=True)
    got = model.half()(ids, output_hidden_states=True)
    assert expected.hidden_states[1].abs().max() > 9e3
    pairs = zip([main_output(got), *got.hidden_states], [main_output(expected), *expected.hidden_states], strict=True)
    for half, full in pairs:
        assert half.dtype == torch.float16
        assert half.isfinite().all()
        assert (half.float() - full).norm() < 1e-2 * full.norm()


def test_no_face_is_built_of_anything_but_parameters():
    for face in FACES:
        model = make(face)
        assert not list(model.buffers())  # no causal masks
        loose = [
            (type(module).__name__, name)
            for module in model.modules()
            for name, value in vars(module).items()
            if isinstance(value, (torch.Tensor, nn.Parameter))
        ]
        assert loose == []
