"""Costs against what models really have and do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from imagegpt.checkpoint import EMBEDDED, load_tensors, read_spec
from imagegpt.engine.cost import (
    PROMPT_IDS,
    cache_numbers,
    decode_memory,
    forward_flops,
    step_bytes,
    weight_memory,
    weight_numbers,
)
from imagegpt.spec import SIZES, ModelSpec

SMALL = ModelSpec(vocab_size=11, n_positions=20, n_embd=24, n_layer=3, n_head=3, n_inner=50)
SPECS = {
    "small": SMALL,
    "tied": dataclasses.replace(SMALL, tie_word_embeddings=True),
    "pruned": dataclasses.replace(SMALL, pruned_heads={1: [0, 2]}),
    "four times": dataclasses.replace(SMALL, n_inner=None),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def model_of(spec):
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.heads import ImageGPTForCausalImageModeling

    numbers = dataclasses.asdict(spec)
    pruned = numbers.pop("pruned_heads")
    model = ImageGPTForCausalImageModeling(ImageGPTConfig(**numbers)).eval()
    if pruned:
        model.prune_heads(pruned)
    return model


@each_spec
def test_the_weights_of_a_step_are_all_parameters_but_the_embeddings(spec, tmp_path):
    model_of(spec).save_pretrained(tmp_path)
    tensors = load_tensors(tmp_path)
    looked_up = tensors["transformer.wte.weight"].size + tensors["transformer.wpe.weight"].size
    assert weight_numbers(read_spec(tmp_path)) == sum(tensor.size for tensor in tensors.values()) - looked_up


@each_spec
def test_the_cache_of_an_id_is_what_a_model_returns_for_it(spec):
    import torch

    past = model_of(spec)(torch.zeros((1, 7), dtype=torch.long), use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in past.layers)
    assert cache_numbers(spec) * 7 == numbers


@each_spec
def test_a_forward_s_operations_are_those_that_torch_counts(spec):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(spec)
    model.set_attn_implementation("eager")
    length = spec.n_positions
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros((1, length), dtype=torch.long), use_cache=False)
    attended = sum(spec.heads(layer) * spec.head_width for layer in range(spec.n_layer))
    # Eager attention computes the scores of later ids too.
    unneeded = 4 * attended * (length**2 - length * (length + 1) // 2)
    if spec.tie_word_embeddings:  # and the start token's logit, which is dropped
        unneeded += 2 * length * spec.n_embd
    assert forward_flops(spec) == counter.get_total_flops() - unneeded
    assert forward_flops(spec, length) == forward_flops(spec)


def test_a_shorter_forward_costs_less():
    costs = [forward_flops(SMALL, length) for length in range(21)]
    assert costs[0] == 0
    assert (np.diff(costs) > 0).all()
    assert (np.diff(costs, n=2) > 0).all()  # each id attends to one more


def test_operations_of_the_published_sizes():
    sizes = ("nano", "small", "medium", "large")
    assert [round(forward_flops(SIZES[name]) / 1e9) for name in sizes] == [11, 181, 1006, 2940]


def test_a_step_reads_the_weights_once_and_the_cache_of_each_row():
    weights, cache = weight_numbers(SMALL), cache_numbers(SMALL)
    assert step_bytes(SMALL, 0, 100) == 4 * weights
    assert step_bytes(SMALL, 3, 10) == 4 * weights + 4 * 3 * 10 * cache
    assert step_bytes(SMALL, 3, 10.5, 1) == weights + 3 * 10.5 * cache
    assert step_bytes(SMALL, 3, 10, 1, 4) == weights + 4 * 3 * 10 * cache


@pytest.mark.parametrize("prompt", [0, 512, 1023])
@pytest.mark.parametrize("kind", [1, 2, 4])
def test_memory_of_decoding_grows_by_the_cache_of_each_row(prompt, kind):
    spec = SIZES["nano"]
    most = max(1, PROMPT_IDS // (prompt + 1))  # prompts that are run at once
    one_more = spec.n_positions * cache_numbers(spec) * kind
    for prompts in (1, most):
        memory = [decode_memory(spec, rows, prompts, prompt, kind) for rows in range(prompts, prompts + 5)]
        assert np.diff(memory).tolist() == [one_more] * 4
    few = np.diff([decode_memory(spec, rows, rows, prompt, kind) for rows in range(1, min(most, 50) + 1)])
    assert (np.abs(few - few[:1]) <= 1).all()  # linear, and steeper: prompts of their own
    assert (few > one_more).all()
    # More prompts than are run at once wait for their turn.
    many = [decode_memory(spec, most + 9, prompts, prompt, kind) for prompts in (most, most + 9)]
    assert many[0] == many[1]


@each_spec
def test_the_memory_of_the_weights_is_that_of_the_arrays(spec):
    from decoding import parameters
    from imagegpt.engine.onnx_weights import float_weights, int8_weights

    model = model_of(spec)
    arrays = float_weights(parameters(model))
    total = sum(array.nbytes for array in arrays.values())
    assert weight_memory(spec) == total
    eight = sum(array.nbytes for array in int8_weights(spec, parameters(model)).values())
    assert weight_memory(spec, 1) < eight  # scales, padding and biases come on top


def test_memory_of_decoding_holds_at_least_the_buffers():
    from imagegpt.engine.onnx_backend import OnnxBackend
    from imagegpt.engine.onnx_weights import float_weights

    spec = SIZES["nano"]
    backend = OnnxBackend(spec, float_weights(load_tensors(EMBEDDED["nano"])))
    rows = backend.prefill(np.full((1, 1), spec.sos), np.zeros(3, int))
    buffers = sum(cache.nbytes for cache in rows.caches.values())
    assert buffers == spec.n_positions * cache_numbers(spec) * 4 * 3
    assert buffers < decode_memory(spec, 3, 1, 0, 4) < 1.1 * buffers
