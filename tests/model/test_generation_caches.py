"""`generate` and single steps with every kind of cache: what the network computes does not depend on it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, QuantizedCache, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import by_hand
from by_hand import HEADS, LAYERS, WIDTH, T, left_padded, prompt

P = 7
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
needs_accelerator = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="transformers moves an offloaded cache to an accelerator, and there is none"
)


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change."""
    return copy.deepcopy(tiny_model)


def generate(model, ids=None, **kwargs):
    ids = prompt() if ids is None else ids
    return model.generate(ids, **{"do_sample": False, "return_dict_in_generate": True, "output_logits": True, **kwargs})


def assert_same(got, expected):
    assert got.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), **TOLERANCE)


def stepwise(model, ids, cache, first, **inputs):
    """Logits of all ids: `first` of them at once, the others one by one."""
    whole_mask = inputs.pop("attention_mask", None)
    logits, start = [], 0
    with torch.no_grad():
        for end in range(first, ids.shape[1] + 1):
            mask = None if whole_mask is None else whole_mask[:, :end]
            given = {name: value[:, start:end] for name, value in inputs.items()}
            logits.append(model(ids[:, start:end], past_key_values=cache, attention_mask=mask, **given).logits)
            start = end
    return torch.cat(logits, 1)


# Static caches.


@pytest.mark.parametrize("first", [1, 5])
@pytest.mark.parametrize("size", [T, 3 * T])
def test_logits_with_a_static_cache_are_those_of_one_call(model, first, size):
    ids = prompt(3, T - 1)
    cache = StaticCache(config=model.config, max_cache_len=size)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(stepwise(model, ids, cache, first), expected, **TOLERANCE)
    assert cache.layers[0].keys.shape == (3, HEADS, size, WIDTH // HEADS)


@pytest.mark.parametrize("with_positions", [False, True])
def test_logits_with_a_static_cache_leave_padding_out(model, with_positions):
    ids, mask = left_padded(prompt(1, 20), prompt(1, 14))
    inputs = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if with_positions else {}
    cache = StaticCache(config=model.config, max_cache_len=100)
    got = stepwise(model, ids, cache, 10, attention_mask=mask, **inputs)
    with torch.no_grad():
        alone = model(prompt(1, 14)).logits
    torch.testing.assert_close(got[1:, 6:], alone, **TOLERANCE)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "asked",
    [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 4}, {"output_attentions": True}],
    ids=str,
)
def test_a_static_cache_gives_what_a_dynamic_one_gives(model, implementation, asked):
    model.set_attn_implementation(implementation)
    outputs = []
    for kind in ("dynamic", "static"):
        torch.manual_seed(0)
        outputs.append(generate(model, cache_implementation=kind, **asked))
    assert_same(outputs[1], outputs[0])
    rows = 2 * asked.get("num_beams", asked.get("num_return_sequences", 1))
    assert isinstance(outputs[1].past_key_values, StaticCache)
    # Exactly as long as a picture: the last id is never read.
    assert outputs[1].past_key_values.layers[1].values.shape == (rows, HEADS, T, WIDTH // HEADS)


def test_a_static_cache_may_be_longer_than_the_positions(model):
    got = generate(model, cache_implementation="static", max_cache_len=200)
    assert_same(got, generate(model))
    assert got.past_key_values.layers[0].keys.shape[2] == 200
    assert_same(generate(model, past_key_values=StaticCache(config=model.config, max_cache_len=200)), generate(model))


def test_attentions_with_a_static_cache_are_zero_where_it_is_empty(model):
    static, dynamic = (
        generate(model, max_new_tokens=4, cache_implementation=kind, max_cache_len=20, output_attentions=True)
        for kind in ("static", "dynamic")
    )
    for step, (wide, narrow) in enumerate(zip(static.attentions, dynamic.attentions, strict=True)):
        for layer in range(LAYERS):
            seen = P + step
            torch.testing.assert_close(wide[layer][..., :seen], narrow[layer], **TOLERANCE)
            assert wide[layer].shape[-1] == 20
            assert (wide[layer][..., seen:] == 0).all()


def test_a_static_cache_can_be_used_again_after_a_reset(model):
    cache = StaticCache(config=model.config, max_cache_len=T)
    for seed in (1, 2):
        cache.reset()
        ids = prompt(2, 6, seed)
        assert_same(generate(model, ids, past_key_values=cache), generate(model, ids))


# The other kinds.


@pytest.mark.parametrize("kind", [None, "dynamic", "static"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_prompt_may_be_read_in_chunks(model, kind, size):
    got = generate(model, cache_implementation=kind, prefill_chunk_size=size)
    assert_same(got, generate(model))


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@needs_accelerator
def test_an_offloaded_cache_gives_what_a_dynamic_one_gives(model, kind, asked):
    model, ids = model.cuda(), prompt().cuda()
    expected = generate(model, ids, cache_implementation="dynamic", **asked)
    got = generate(model, ids, cache_implementation=kind, **asked)
    assert got.sequences.tolist() == expected.sequences.tolist()
    assert got.past_key_values.offloading


def test_a_quantized_cache_gives_logits_near_those_of_a_dynamic_one(model):
    pytest.importorskip("optimum.quanto")
    errors = {}
    for bits in (4, 2):
        cache = {"backend": "quanto", "nbits": bits, "q_group_size": 16, "residual_length": 4}
        got = generate(model, cache_implementation="quantized", cache_config=cache, max_new_tokens=20)
        assert isinstance(got.past_key_values, QuantizedCache)
        # From an exact cache, the same ids give logits that differ by the rounding of what was read before.
        with torch.no_grad():
            exact = model(got.sequences[:, :-1]).logits[:, P - 1 :]
        error = (torch.stack(got.logits, 1) - exact).square().mean((0, 2)).sqrt() / exact.std()
        assert error[0] < 1e-5
        errors[bits] = error[1:].mean()
    assert 1e-3 < errors[4] < 0.15 < errors[2] < 0.6


def test_a_cache_that_is_given_and_one_that_is_named_are_one_too_many(model):
    with pytest.raises(ValueError, match="cache_implementation"):
        generate(model, past_key_values=DynamicCache(), cache_implementation="static")
    with pytest.raises(ValueError, match="cache_implementation"):
        generate(model, cache_implementation="elastic")


# Going on from a past.


GOING_ON = {
    "dynamic": ({}, lambda cache: cache),
    "static": ({"cache_implementation": "static", "max_cache_len": T}, lambda cache: cache),
    "tuples": ({}, lambda cache: tuple((layer.keys, layer.values) for layer in cache.layers)),
    "lists": ({}, lambda cache: [[layer.keys, layer.values] for layer in cache.layers]),
}


@pytest.mark.parametrize(("asked", "form"), GOING_ON.values(), ids=GOING_ON.keys())
def test_generation_goes_on_from_the_past_it_returned(model, asked, form):
    expected = generate(model, max_new_tokens=20)
    before = generate(model, max_new_tokens=12, **asked)
    reads = []
    model.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: reads.append(args[0].shape[1]), with_kwargs=True
    )
    after = generate(model, before.sequences, past_key_values=form(before.past_key_values), max_new_tokens=8)
    assert after.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(after.logits), torch.stack(expected.logits[12:]), **TOLERANCE)
    assert reads == [1] * 8  # nothing is read twice


def test_generation_goes_on_after_padding_too(model):
    ids, mask = left_padded(prompt(1, 6), prompt(1, 2))
    expected = generate(model, ids, attention_mask=mask, max_new_tokens=20).sequences
    before = generate(model, ids, attention_mask=mask, max_new_tokens=12)
    mask = torch.cat([mask, torch.ones(2, 12, dtype=mask.dtype)], 1)
    past = before.past_key_values
    after = generate(model, before.sequences, attention_mask=mask, past_key_values=past, max_new_tokens=8)
    assert after.sequences.tolist() == expected.tolist()


def test_the_ids_of_the_past_may_be_left_out_if_the_mask_counts_them(model):
    expected = generate(model).sequences
    before = generate(model, max_new_tokens=12)
    new = before.sequences[:, -1:]
    inputs = {"past_key_values": before.past_key_values, "attention_mask": torch.ones(2, P + 12, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"at most 47 ids.*ask for 48"):
        generate(model, new, max_new_tokens=47, **inputs)
    # To the end of the picture, and no further.
    assert generate(model, new, **inputs).sequences.tolist() == expected[:, P + 11 :].tolist()


def test_another_continuation_starts_from_a_shortened_past(model):
    first = generate(model, max_new_tokens=20)
    first.past_key_values.crop(-16)
    ids = torch.cat([first.sequences[:, : P + 5], torch.tensor([[3], [4]])], 1)
    assert_same(generate(model, ids, past_key_values=first.past_key_values), generate(model, ids))


# Continuous batching.


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_requests_of_different_lengths_are_generated_in_one_continuous_batch(model, implementation):
    prompts = [prompt(1, colors, seed=colors)[0].tolist() for colors in (0, 5, 11)]
    expected = [by_hand.greedy(model, torch.tensor([ids]), 12)[0][0, len(ids) :].tolist() for ids in prompts]
    model.set_attn_implementation(implementation)
    got = model.generate_batch(
        prompts,
        GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
    )
    assert [request.error for request in got.values()] == [None] * 3
    assert [request.generated_tokens for request in got.values()] == expected
