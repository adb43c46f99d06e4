"""Table of defects: cross-attention. Wanted: as in GPT-2, so GPT-2 with our norm is what the answers are compared with.

How a row becomes two tests is told in tests/defects.py.
"""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2Model
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from defects import NUMBERS, OURS, TOLERANCE, defect, random_ids, with_start

IDS = random_ids(2, 9)
ENCODER = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(1))
assert_close = torch.testing.assert_close


def gpt2_of(trunk):
    """transformers' GPT-2 with a trunk's weights: the same network once its norms neither centre nor have biases."""
    config = GPT2Config(**NUMBERS, activation_function="quick_gelu", add_cross_attention=True)
    config._attn_implementation = "eager"
    model = GPT2Model(config).eval()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.LayerNorm):
                setattr(module, name, torch.nn.RMSNorm(32, eps=1e-5))
    model.load_state_dict(trunk.state_dict())
    return model


def make(family):
    trunk = family.make("trunk", add_cross_attention=True)
    return trunk, gpt2_of(trunk)


def states(model, *args, **kwargs):
    return model(*args, **kwargs).last_hidden_state


@torch.no_grad()
def test_the_encoder_matters():
    """Without this, all the checks below could hold for a model that ignores the encoder."""
    trunk, gpt2 = make(OURS)
    assert (states(gpt2, IDS, encoder_hidden_states=ENCODER) - states(gpt2, IDS)).abs().max() > 0.1
    assert_close(states(trunk, IDS), states(gpt2, IDS), **TOLERANCE)


@defect("cross-attention", "the default call crashes", peer="UnboundLocalError: .*is_updated")
@torch.no_grad()
def test_default_call(family):
    trunk, gpt2 = make(family)
    expected = states(gpt2, IDS, encoder_hidden_states=ENCODER)
    assert_close(states(trunk, IDS, encoder_hidden_states=ENCODER), expected, **TOLERANCE)


@defect("cross-attention", "the default call crashes", peer="UnboundLocalError: .*is_updated")
@torch.no_grad()
def test_default_call_of_the_generative_model(family):
    model = family.make(add_cross_attention=True)
    expected = model.lm_head(states(gpt2_of(model.transformer), IDS, encoder_hidden_states=ENCODER))
    assert_close(model(IDS, encoder_hidden_states=ENCODER).logits, expected, **TOLERANCE)


@defect("cross-attention", "the default call crashes", peer="UnboundLocalError: .*is_updated")
@torch.no_grad()
def test_generate_from_an_encoder(family):
    model = family.make(add_cross_attention=True)
    gpt2, ids = gpt2_of(model.transformer), with_start(IDS)
    got = model.generate(ids, encoder_hidden_states=ENCODER, max_new_tokens=6, do_sample=False)
    for _ in range(6):
        logits = model.lm_head(states(gpt2, ids, encoder_hidden_states=ENCODER)[:, -1:])
        ids = torch.cat([ids, logits.argmax(-1)], 1)
    assert got.tolist() == ids.tolist()


@defect("cross-attention", "encoder_attention_mask is ignored")
@torch.no_grad()
def test_encoder_attention_mask(family):
    trunk, gpt2 = make(family)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, 7:] = 0
    got = states(trunk, IDS, encoder_hidden_states=ENCODER, encoder_attention_mask=mask, use_cache=False)
    alone = states(gpt2, IDS[:1], encoder_hidden_states=ENCODER[:1, :7])
    assert_close(got[:1], alone, **TOLERANCE)
    assert_close(got, states(gpt2, IDS, encoder_hidden_states=ENCODER, encoder_attention_mask=mask), **TOLERANCE)


@defect("cross-attention", "the decoder's mask is applied to the encoder's keys")
@torch.no_grad()
def test_decoder_mask_with_as_many_encoder_states_as_ids(family):
    trunk, gpt2 = make(family)
    mask, encoder = torch.ones_like(IDS), ENCODER[:, :9].contiguous()
    mask[:, 6:] = 0
    got = states(trunk, IDS, attention_mask=mask, encoder_hidden_states=encoder, use_cache=False)
    assert_close(got[:, :6], states(gpt2, IDS[:, :6], encoder_hidden_states=encoder), **TOLERANCE)


@defect("cross-attention", "a padded decoder mask is a shape error", peer="RuntimeError: The size of tensor")
@torch.no_grad()
def test_padded_decoder_mask(family):
    trunk, gpt2 = make(family)
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    got = states(trunk, IDS, attention_mask=mask, encoder_hidden_states=ENCODER, use_cache=False)
    expected = states(gpt2, IDS, encoder_hidden_states=ENCODER)
    assert_close(got[0], expected[0], **TOLERANCE)
    assert_close(got[1, :6], expected[1, :6], **TOLERANCE)


@defect("cross-attention", "the encoder's keys double after a step: 22 for 11", peer="AssertionError")
@torch.no_grad()
def test_encoder_keys_in_the_cache(family):
    trunk, gpt2 = make(family)
    past = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first = states(trunk, IDS[:, :8], encoder_hidden_states=ENCODER, past_key_values=past)
    last = states(trunk, IDS[:, 8:], encoder_hidden_states=ENCODER, past_key_values=past)
    assert [layer.keys.shape[2] for layer in past.cross_attention_cache.layers] == [11, 11]
    assert [layer.keys.shape[2] for layer in past.self_attention_cache.layers] == [9, 9]
    expected = states(gpt2, IDS, encoder_hidden_states=ENCODER)
    assert_close(torch.cat([first, last], 1), expected, **TOLERANCE)


@pytest.mark.parametrize("cut", [(slice(None), slice(1, None)), (slice(None), slice(None, None, 2))], ids=str)
@defect("cross-attention", "a sliced encoder state crashes", peer="RuntimeError: view size")
@torch.no_grad()
def test_sliced_encoder_states(family, cut):
    trunk, gpt2 = make(family)
    sliced = ENCODER[cut]
    assert not sliced.is_contiguous()
    got = states(trunk, IDS, encoder_hidden_states=sliced, use_cache=False)
    assert_close(got, states(gpt2, IDS, encoder_hidden_states=sliced.contiguous()), **TOLERANCE)


@defect("cross-attention", "output_attentions without encoder states is an error", peer="IndexError: tuple index")
@torch.no_grad()
def test_output_attentions_without_an_encoder(family):
    trunk, gpt2 = make(family)
    got = trunk(IDS, output_attentions=True)
    for mine, theirs in zip(got.attentions, gpt2(IDS, output_attentions=True).attentions, strict=True):
        assert_close(mine, theirs, **TOLERANCE)
    assert got.cross_attentions is None


@defect("cross-attention", "the default call crashes", peer="UnboundLocalError: .*is_updated")
@torch.no_grad()
def test_output_attentions_with_an_encoder(family):
    trunk, gpt2 = make(family)
    got, expected = (
        model(IDS, encoder_hidden_states=ENCODER, output_attentions=True).cross_attentions for model in (trunk, gpt2)
    )
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == (2, 2, 9, 11)
        assert_close(mine, theirs, **TOLERANCE)
