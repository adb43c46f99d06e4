"""Compiled generation: one graph per step, and the ids of the model that is not compiled.

Capturing the graph is what a model can break, and takes a second; so most tests run the captured graph as it is
(backend "eager"). One compiles it to machine code, and slow ones do so inside `generate`.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, EncoderDecoderCache, StaticCache

import by_hand
from by_hand import WIDTH, T, left_padded, make, prompt
from imagegpt.model.heads import ImageGPTForCausalImageModeling

P = 7


@pytest.fixture
def model(tiny_model):
    """A copy that a test may change; nothing that was compiled before is known."""
    torch.compiler.reset()
    yield copy.deepcopy(tiny_model)
    torch.compiler.reset()


def generate(model, ids=None, **kwargs):
    ids = prompt() if ids is None else ids
    return model.generate(ids, **{"do_sample": False, "max_new_tokens": 12, **kwargs})


def compiling(backend="eager"):
    config = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend=backend)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def steps(forward, model, ids, cache, **inputs):
    """Logits of the ids after the prompt, one by one; the prompt is read by the plain model."""
    with torch.no_grad():
        model(ids[:, :P], past_key_values=cache, **inputs)
        return torch.cat(
            [forward(ids[:, [t]], past_key_values=cache, **inputs).logits for t in range(P, ids.shape[1])], 1
        )


def test_the_class_says_that_a_step_is_one_graph():
    assert ImageGPTForCausalImageModeling._can_compile_fullgraph is True


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_step_with_a_static_cache_is_one_graph_that_is_captured_once(model, implementation):
    model.set_attn_implementation(implementation)
    ids = prompt(2, 30)
    captured = CompileCounter()
    caches = [StaticCache(config=model.config, max_cache_len=T) for _ in range(2)]
    got = steps(torch.compile(model.forward, fullgraph=True, backend=captured), model, ids, caches[0])
    torch.testing.assert_close(got, steps(model, model, ids, caches[1]), rtol=0, atol=0)
    assert captured.frame_count == 1


def test_a_step_with_cross_attention_is_one_graph_that_is_captured_once(model):
    model = make(add_cross_attention=True)
    ids, states = prompt(2, 30), torch.randn(2, 5, WIDTH)
    captured = CompileCounter()
    logits = []
    for forward in (model, torch.compile(model.forward, fullgraph=True, backend=captured)):
        cache = EncoderDecoderCache(StaticCache(config=model.config, max_cache_len=T), DynamicCache())
        logits.append(steps(forward, model, ids, cache, encoder_hidden_states=states))
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0)
    assert captured.frame_count == 1


def test_a_whole_picture_without_a_cache_is_one_graph(model):
    ids = prompt(2, T - 1)
    forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert (forward(ids, use_cache=False).logits == model(ids, use_cache=False).logits).all()


def test_a_step_compiled_to_machine_code_equals_the_plain_one(model):
    model = make(n_layer=1)
    ids = prompt(2, 12)
    caches = [StaticCache(config=model.config, max_cache_len=20) for _ in range(2)]
    got = steps(torch.compile(model.forward, fullgraph=True), model, ids, caches[0])
    torch.testing.assert_close(got, steps(model, model, ids, caches[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "asked", [{}, {"num_return_sequences": 2, "do_sample": True}, {"prefill_chunk_size": 4}], ids=str
)
def test_generate_compiles_its_steps_and_keeps_its_ids(model, asked):
    counters.clear()
    for seed in (1, 2):
        ids = prompt(2, 6, seed)
        torch.manual_seed(0)
        expected = generate(model, ids, **asked)
        torch.manual_seed(0)
        assert generate(model, ids, **asked, **compiling()).tolist() == expected.tolist()
    # The second call has a new cache, and the graphs of the first: of a step, and of each size of chunk.
    assert counters["stats"]["unique_graphs"] == (3 if "prefill_chunk_size" in asked else 1)


def test_generate_does_not_compile_with_a_dynamic_cache(model):
    generate(model, **{**compiling(), "cache_implementation": None})
    assert not hasattr(model, "_compiled_call")


def test_compiled_steps_leave_padding_out(model):
    rows = [prompt(1, 6), prompt(1, 2)]
    ids, mask = left_padded(*rows)
    got = generate(model, ids, attention_mask=mask, **compiling())
    expected = [by_hand.greedy(model, row, 12)[0][0, row.shape[1] :].tolist() for row in rows]
    assert got[:, P:].tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generate_compiled_to_machine_code_paints_the_same_pictures(model, dtype):
    model = model.to(dtype)
    asked = {"max_new_tokens": None, "output_logits": True, "return_dict_in_generate": True}
    for seed in (1, 2):
        ids = prompt(2, 6, seed)
        expected = generate(model, ids, **asked)
        got = generate(model, ids, **asked, **compiling("inductor"))
        same = (got.sequences == expected.sequences)[:, P:].cumprod(1)
        assert same.all() if dtype == torch.float32 else same.sum() > 20
        torch.testing.assert_close(got.logits[0], expected.logits[0], atol=2e-2, rtol=2e-2)
    assert hasattr(model, "_compiled_call")


@pytest.mark.slow
def test_a_compiled_step_reads_an_encoder_s_states(model):
    model = make(add_cross_attention=True)
    states = {"encoder_hidden_states": torch.randn(2, 5, WIDTH)}
    expected = generate(model, **states)
    assert generate(model, **states, **compiling("inductor")).tolist() == expected.tolist()
