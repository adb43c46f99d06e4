"""Costs against what models really have and do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from imagegpt.checkpoint import EMBEDDED, load_tensors, read_spec
from imagegpt.engine.cost import (
    PROMPT_IDS,
    Training,
    block_activations,
    block_numbers,
    cache_numbers,
    decode_memory,
    forward_flops,
    held_numbers,
    step_bytes,
    training_flops,
    training_memory,
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


def eager_operations_of_a_step(spec, checkpointing):
    """Operations that torch counts in a training step of two rows."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(spec).train()
    model.set_attn_implementation("eager")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model.image_loss(torch.zeros((2, spec.n_positions), dtype=torch.long)).backward()
    return counter.get_total_flops()


@each_spec
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_s_operations_are_those_that_torch_counts(spec, checkpointing):
    length = spec.n_positions
    attended = sum(spec.heads(layer) * spec.head_width for layer in range(spec.n_layer))
    # Eager attention computes the scores of later ids too, and its gradients.
    later = 4 * attended * (length**2 - length * (length + 1) // 2)
    head = 2 * length * spec.n_embd if spec.tie_word_embeddings else 0  # the start token's logit
    unneeded = 2 * (3 * (later + head) + (later if checkpointing else 0))
    assert training_flops(spec, 2, checkpointing) == eager_operations_of_a_step(spec, checkpointing) - unneeded


def saved_bytes(spec, run):
    """Bytes that a real forward keeps for its backward pass, parameters left out."""
    import torch

    model = model_of(spec).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = run.dropout
    own, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def pack(tensor):
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=run.half):
        loss = model.image_loss(torch.zeros((run.rows, spec.n_positions), dtype=torch.long))
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@each_spec
@pytest.mark.parametrize("half", [False, True])
def test_what_a_forward_keeps_is_what_autograd_saves(spec, half):
    run = Training(rows=3, half=half)
    ids = run.rows * spec.n_positions
    parts = training_memory(spec, run)
    kept = sum(ids * block_activations(spec, layer, run) for layer in range(spec.n_layer))
    kept += ids * (4 + run.number) * spec.n_embd  # of the final norm
    logarithms = 4 * ids * spec.num_colors
    saved = saved_bytes(spec, run)
    copies = saved - kept - logarithms
    if half:
        # Autocast's copies of the matrices; those of the biases are not needed again.
        matrices = held_numbers(spec, blocks_matrices=True) + spec.num_colors * spec.n_embd
        extra = 2 * spec.n_embd if spec.tie_word_embeddings else 0  # the start token's row
        assert 2 * matrices <= copies <= 2 * matrices + extra + 64
    else:
        assert 0 <= copies <= 64
    assert parts["activations"] <= kept


def test_dropout_keeps_a_number_for_each_element_on_a_cpu():
    plain, dropped = Training(rows=2, cpu=True), Training(rows=2, dropout=0.1, cpu=True)
    ids = 2 * SMALL.n_positions
    more = saved_bytes(SMALL, dropped) - saved_bytes(SMALL, plain)
    masks = ids * SMALL.n_embd * 4 * (2 * SMALL.n_layer + 1)
    logarithms = 4 * ids * sum(SMALL.heads(layer) for layer in range(SMALL.n_layer))  # attention with dropout has none
    assert more == masks - logarithms
    assert block_activations(SMALL, 0, dropped) - block_activations(SMALL, 0, plain) == 2 * 4 * SMALL.n_embd


@each_spec
def test_numbers_that_a_process_holds_are_those_of_the_parameters(spec):
    model = model_of(spec)
    assert held_numbers(spec) == sum(weight.numel() for weight in model.parameters())
    assert held_numbers(spec) == spec.num_parameters
    assert block_numbers(spec) == [
        sum(weight.numel() for weight in block.parameters()) for block in model.transformer.h
    ]
    matrices = [weight for block in model.transformer.h for weight in block.parameters() if weight.ndim == 2]
    assert held_numbers(spec, blocks_matrices=True) == sum(weight.numel() for weight in matrices)


@each_spec
def test_muon_has_the_moments_that_are_planned(spec):
    import torch

    from imagegpt.train.optimizers import optimizers_of
    from imagegpt.train.recipe import Optimization

    for kind in ("adamw", "muon"):
        model = model_of(spec)
        model.image_loss(torch.zeros((1, spec.n_positions), dtype=torch.long)).backward()
        held = 0
        for optimizer in optimizers_of(dict(model.named_parameters()), Optimization(optimizer=kind), torch.float32):
            optimizer.step()
            states = [value for state in optimizer.state.values() for value in state.values()]
            held += sum(value.nbytes for value in states if isinstance(value, torch.Tensor) and value.numel() > 1)
        assert held == training_memory(spec, Training(rows=1, optimizer=kind))["optimizer"]


def test_what_options_do_to_the_memory():
    spec, run = SIZES["medium"], Training(rows=4, half=True)
    total = {
        name: sum(training_memory(spec, dataclasses.replace(run, **change)).values())
        for name, change in {
            "plain": {},
            "fp32": {"half": False},
            "checkpointing": {"checkpointing": True},
            "fsdp": {"ranks": 8, "strategy": "fsdp"},
            "ddp": {"ranks": 8},
            "ema": {"ema": True},
            "muon": {"optimizer": "muon"},
            "rows": {"rows": 2},
            "dropout": {"dropout": 0.1},
        }.items()
    }
    smaller = {name for name, value in total.items() if value < total["plain"]}
    assert smaller == {"checkpointing", "fsdp", "muon", "rows"}
    assert total["ddp"] - total["plain"] == 4 * spec.num_parameters == total["ema"] - total["plain"]
