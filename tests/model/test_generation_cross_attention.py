"""`generate` with an encoder's states: cross-attention reads them at every step, whatever the cache."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import by_hand
from by_hand import HEADS, LAYERS, SOS, WIDTH, T, left_padded, make, prompt

S = 11
ENCODER = torch.randn(2, S, WIDTH, generator=torch.Generator().manual_seed(1))
ENCODER_MASK = torch.tensor([[1] * S, [1] * 8 + [0] * 3])
STATES = {"encoder_hidden_states": ENCODER, "encoder_attention_mask": ENCODER_MASK}


@pytest.fixture
def model():
    return make(add_cross_attention=True)


def generate(model, ids=None, **kwargs):
    ids = prompt() if ids is None else ids
    return model.generate(ids, **{"do_sample": False, "max_new_tokens": 20, **STATES, **kwargs})


def of_row(row):
    return {name: value[row : row + 1] for name, value in STATES.items()}


@pytest.mark.parametrize(
    "asked", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}], ids=str
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_ids_follow_the_encoder_s_states_and_its_mask(model, implementation, asked):
    expected = by_hand.greedy(model, prompt(), 20, **STATES)[0].tolist()
    model.set_attn_implementation(implementation)
    assert generate(model, **asked).tolist() == expected
    for other in (
        {"encoder_hidden_states": -ENCODER},
        {"encoder_hidden_states": None},
        {"encoder_attention_mask": None},
    ):
        assert generate(model, **other, **asked).tolist() != expected


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_encoder_s_keys_are_computed_once_and_stay(model, kind):
    calls = []
    model.transformer.h[0].crossattention.c_attn.register_forward_hook(lambda *_: calls.append(1))
    past = generate(model, cache_implementation=kind, return_dict_in_generate=True).past_key_values
    assert len(calls) == 1
    assert type(past) is EncoderDecoderCache
    assert type(past.self_attention_cache) is (StaticCache if kind == "static" else DynamicCache)
    for own, encoder in zip(past.self_attention_cache.layers, past.cross_attention_cache.layers, strict=True):
        assert own.keys.shape == (2, HEADS, 7 + 19, WIDTH // HEADS)
        assert encoder.keys.shape == encoder.values.shape == (2, HEADS, S, WIDTH // HEADS)


def test_without_a_prompt_each_of_the_encoder_s_rows_starts_a_picture(model):
    ids = model.generate(**STATES, do_sample=False)
    assert ids.shape == (2, T + 1)
    assert (ids[:, 0] == SOS).all()
    expected = [model.generate(**of_row(row), do_sample=False)[0].tolist() for row in range(2)]
    assert ids.tolist() == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_beams_share_their_row_s_states(model, kind):
    got = generate(model, max_new_tokens=8, num_beams=3, num_return_sequences=2, cache_implementation=kind)
    rows = [by_hand.beams(model, prompt()[row : row + 1], 8, 3, **of_row(row))[:2] for row in range(2)]
    assert got.tolist() == [ids for beams in rows for _, ids in beams]


def test_several_samples_share_their_row_s_states(model):
    drawn = []
    for rows in (1, 3):
        torch.manual_seed(0)
        states = {name: value.repeat_interleave(3 // rows, 0) for name, value in STATES.items()}
        ids = prompt().repeat_interleave(3 // rows, 0)
        drawn.append(generate(model, ids, do_sample=True, num_return_sequences=rows, **states).tolist())
    assert drawn[0] == drawn[1]


def test_padding_of_the_ids_is_not_the_encoder_s(model):
    rows = [prompt(1, 6), prompt(1, 2)]
    ids, mask = left_padded(*rows)
    got = generate(model, ids, attention_mask=mask)[:, 7:].tolist()
    alone = [generate(model, row, **of_row(i))[0, row.shape[1] :].tolist() for i, row in enumerate(rows)]
    assert got == alone


@pytest.mark.parametrize("form", ["cache", "tuples"])
def test_generation_goes_on_from_a_past_with_cross_attention(model, form):
    expected = generate(model).tolist()
    before = generate(model, max_new_tokens=12, return_dict_in_generate=True)
    past = before.past_key_values
    if form == "tuples":
        layers = zip(past.self_attention_cache.layers, past.cross_attention_cache.layers, strict=True)
        past = tuple((own.keys, own.values, encoder.keys, encoder.values) for own, encoder in layers)
    calls = []
    model.transformer.h[0].crossattention.c_attn.register_forward_hook(lambda *_: calls.append(1))
    assert generate(model, before.sequences, past_key_values=past, max_new_tokens=8).tolist() == expected
    assert not calls


def test_an_empty_cache_of_the_caller_s_own_is_filled(model):
    past = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert generate(model, past_key_values=past).tolist() == generate(model).tolist()
    assert [layer.keys.shape[2] for layer in past.cross_attention_cache.layers] == [S] * LAYERS
    # One for the ids alone is taken too.
    assert generate(model, past_key_values=DynamicCache()).tolist() == generate(model).tolist()


@pytest.mark.parametrize("helper", ["assistant", "prompt lookup"])
def test_assistance_reads_the_encoder_s_states(model, helper):
    assistant = make(seed=1, n_layer=1, add_cross_attention=True)
    asked = {"assistant_model": assistant} if helper == "assistant" else {"prompt_lookup_num_tokens": 3}
    expected = generate(model, prompt(1), max_new_tokens=None, **of_row(0))
    assert generate(model, prompt(1), max_new_tokens=None, **of_row(0), **asked).tolist() == expected.tolist()


def test_attentions_and_states_of_every_step_are_returned(model):
    got = generate(model, output_attentions=True, output_hidden_states=True, return_dict_in_generate=True)
    assert [len(step) for step in got.attentions] == [LAYERS] * 20
    assert [len(step) for step in got.hidden_states] == [LAYERS + 1] * 20


def test_a_model_without_cross_attention_refuses_an_encoder_s_states():
    with pytest.raises(ValueError, match="add_cross_attention"):
        generate(make())


def test_a_model_with_cross_attention_paints_without_an_encoder_too(model):
    nothing = dict.fromkeys(STATES)
    expected = by_hand.greedy(model, prompt(), 20)[0].tolist()
    assert generate(model, **nothing).tolist() == expected
    assert generate(model, **nothing, cache_implementation="static").tolist() == expected
