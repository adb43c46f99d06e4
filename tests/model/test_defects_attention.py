"""Table of defects: StaticCache, attention backends, attention scale, fp16, padding.

How a row becomes two tests is told in tests/defects.py.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

from defects import OURS, TOLERANCE, K, T, defect, random_ids, with_start
from reference import network

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
assert_close = torch.testing.assert_close


def state_of(model):
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def reference_logits(model, ids):
    """(B, T, K) in numpy and float64."""
    rows = [network.logits(state_of(model), model.config.to_dict(), row.numpy()) for row in ids]
    return torch.from_numpy(np.stack(rows)).float()


# StaticCache.


def in_steps(model, ids, cache):
    """Logits of a prompt of 9 ids, 3 more at once, and the rest one by one."""
    parts = ids.split([9, 3] + [1] * (ids.shape[1] - 12), 1)
    return torch.cat([model(part, past_key_values=cache).logits for part in parts], 1)


@defect("StaticCache", "the logits are wrong, by up to 0.8 on a scale of 4")
@torch.no_grad()
def test_logits_through_a_static_cache(family):
    model, ids = family.make(), random_ids()
    expected = reference_logits(model, ids)
    assert_close(in_steps(model, ids, DynamicCache(config=model.config)), expected, **TOLERANCE)
    static = StaticCache(config=model.config, max_cache_len=T)
    assert_close(in_steps(model, ids, static), expected, **TOLERANCE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@defect("StaticCache", "15 of 48 greedy ids differ")
def test_greedy_ids_through_a_static_cache(family):
    model, start = family.make(), with_start(random_ids(4, 3))
    dynamic = model.generate(start, max_length=T + 1, do_sample=False)
    assert model.generate(start, max_length=T + 1, do_sample=False, cache_implementation="static").equal(dynamic)


@defect("StaticCache", "max_cache_len above n_positions is an error", peer="RuntimeError: The size of tensor")
@torch.no_grad()
def test_a_static_cache_longer_than_the_positions(family):
    model, ids = family.make(), random_ids()
    static = StaticCache(config=model.config, max_cache_len=2 * T)
    assert_close(in_steps(model, ids, static), reference_logits(model, ids), **TOLERANCE)


# Attention backends.


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without:UserWarning", "ignore:_compile flag:DeprecationWarning"
)
@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
@defect("attention backends", "eager only")
@torch.no_grad()
def test_backend(family, backend):
    model, ids = family.make(), random_ids()
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    model.set_attn_implementation("eager")
    eager = model(ids, attention_mask=mask).logits
    assert_close(eager[1:], reference_logits(model, ids[1:]), **TOLERANCE)
    model.set_attn_implementation(backend)
    assert model.config._attn_implementation == backend
    with torch.compiler.set_stance("force_eager"):  # transformers compiles flex attention, which takes 10 s
        got = model(ids, attention_mask=mask).logits
    assert_close(got[0, :15], eager[0, :15], **TOLERANCE)
    assert_close(got[1], eager[1], **TOLERANCE)


@defect("attention backends", "eager only", peer="ValueError: .*scaled_dot_product_attention")
def test_sdpa_when_the_model_is_made(family):
    config = copy.copy(family.make().config)
    assert family.causal._from_config(config, attn_implementation="sdpa").config._attn_implementation == "sdpa"


@defect("attention backends", "eager only: flash and others of transformers are not supported")
def test_the_flags_of_the_backends(family):
    flags = ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_supports_attention_backend")
    assert all(getattr(family.causal, flag) for flag in flags)


@defect("attention backends", "eager only; wanted: eager for maps alone")
@torch.no_grad()
def test_maps_come_from_every_backend(family):
    model, ids = family.make(), random_ids()
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    assert model(ids).attentions is None
    for maps in model(ids, output_attentions=True).attentions:
        assert_close(maps.sum(-1), torch.ones(2, 2, T))
        assert (maps.triu(1) == 0).all()


@defect("attention backends", "a causal buffer of 1 MiB a layer")
def test_no_causal_buffers(family):
    assert sum(buffer.nbytes for _, buffer in family.make().named_buffers()) == 0


@defect("attention backends", "_can_compile_fullgraph is false")
@torch.no_grad()
def test_compiles_as_one_graph(family):
    assert family.causal._can_compile_fullgraph
    model, ids = family.make(), random_ids()
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    cache = StaticCache(config=model.config, max_cache_len=T)
    got = [step(part, past_key_values=cache).logits for part in ids.split([20, 1, 1, 1, 1], 1)]
    assert_close(torch.cat(got, 1), reference_logits(model, ids), **TOLERANCE)


# Attention scale.


@pytest.mark.parametrize("width", [128, 96, 64])
@defect("attention scale", "4.57.6 divides by the root cut to a whole number; mended in transformers 5", peer=None)
@torch.no_grad()
def test_scale_is_the_exact_square_root(family, width):
    model, ids = family.make(n_embd=width, n_head=1, seed=1), random_ids(1)
    for block in model.transformer.h:  # scores of about 3 at every width
        block.attn.c_attn.weight.mul_(width**-0.5 * 5)
    expected = reference_logits(model, ids)
    assert_close(model(ids).logits, expected, **TOLERANCE)
    for block in model.transformer.h:  # the proof that this can fail: what 4.57.6 does
        block.attn.scaling = 1 / int(width**0.5)
    off = (model(ids).logits - expected).abs().max()
    assert off < 1e-4 if width == 64 else off > 1e-2


# fp16.


@pytest.mark.parametrize("outliers", [32, 1], ids=["all of 300", "one outlier of 300"])
@defect("fp16", "the norm squares in half precision: rows of zeros")
@torch.no_grad()
def test_norm_in_half_precision(family, outliers):
    norm = family.make("trunk").half().ln_f
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).half()
    x[:, :outliers] = 300
    expected = network.norm(x.double().numpy(), norm.weight.double().numpy(), 1e-5)
    np.testing.assert_allclose(norm(x).double().numpy(), expected, rtol=2e-3, atol=1e-5)


@defect("fp16", "activations of 300: rows of zeros")
@torch.no_grad()
def test_large_activations_in_half_precision(family):
    trunk, ids = family.make("trunk"), random_ids()
    trunk.wte.weight.mul_(1500)
    expected = trunk(ids).last_hidden_state
    assert trunk.wte(ids).std() > 250
    assert_close(trunk.half()(ids).last_hidden_state.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("implementation", ["default", "eager"])
@defect("fp16", "scores of 1e5 are NaN")
@torch.no_grad()
def test_large_scores_in_half_precision(family, implementation):
    trunk = family.make("trunk").half()
    if implementation == "eager":
        trunk.set_attn_implementation(implementation)
    attention = trunk.h[0].attn
    attention.c_attn.weight[:, :64] *= 50  # queries and keys
    x = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(0)).half() * 5
    q, k, v = (part[0].double().numpy() for part in attention.c_attn(x).chunk(3, -1))
    assert np.abs(q[:, :16] @ k[:, :16].T).max() > 1e5  # a float16 holds 65504
    heads = [network.attention(*(part[:, head] for part in (q, k, v)), 0.25) for head in (slice(16), slice(16, None))]
    projection = attention.c_proj
    expected = np.concatenate(heads, 1) @ projection.weight.double().numpy() + projection.bias.double().numpy()
    np.testing.assert_allclose(attention(x)[0][0].double().numpy(), expected, rtol=0.01, atol=0.02)


# Padding.


@defect("padding", "left padding without position_ids is off by 4.3")
@torch.no_grad()
def test_left_padding_needs_no_position_ids(family):
    model, ids = family.make(), random_ids()
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    got = model(ids, attention_mask=mask).logits
    assert_close(got[:1, 7:], reference_logits(model, ids[:1, 7:]), **TOLERANCE)
    assert_close(got[1:], reference_logits(model, ids[1:]), **TOLERANCE)


@defect("padding", "left padding without position_ids is off by 4.3")
@torch.no_grad()
def test_left_padding_with_a_cache(family):
    model, ids = family.make(), random_ids()
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    cache, got = DynamicCache(config=model.config), []
    for start, end in [(0, 12), (12, 13), (13, T)]:
        got.append(model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits)
    assert_close(torch.cat(got, 1)[:1, 7:], reference_logits(model, ids[:1, 7:]), **TOLERANCE)


@pytest.mark.parametrize("attention", ["default", "eager"])
@defect("padding", "left-padded rows see future pixels")
@torch.no_grad()
def test_left_padded_rows_are_causal(family, attention):
    model, ids = family.make(), random_ids()
    if attention == "eager":
        model.set_attn_implementation(attention)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    before = model(ids, attention_mask=mask).logits
    ids[:, -1] = (ids[:, -1] + 5) % K
    after = model(ids, attention_mask=mask).logits
    assert (after[:, -1] - before[:, -1]).abs().max() > 0.1
    assert_close(after[:, :-1], before[:, :-1], atol=0, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@defect("padding", "class pooling counts padding")
@torch.no_grad()
def test_class_pooling_leaves_padding_out(family, side):
    model, ids = family.make("classifier", num_labels=5), random_ids(2, 12)
    padding = torch.zeros(2, 6, dtype=torch.long)
    mask = torch.ones_like(ids)
    parts = [(padding, padding), (ids, mask)] if side == "left" else [(ids, mask), (padding, padding)]
    padded, mask = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    assert_close(model(padded, attention_mask=mask).logits, model(ids).logits, **TOLERANCE)


def test_the_class_head_reads_the_mean_of_the_states():
    model, ids = OURS.make("classifier", num_labels=5), random_ids()
    pooled = model.transformer(ids).last_hidden_state.mean(1)
    assert_close(model(ids).logits, pooled @ model.score.weight.T, **TOLERANCE)
