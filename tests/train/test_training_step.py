"""One update, in one process: loss and gradients of the slow reference, whatever way they are computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.models import imagegpt as theirs

from by_hand import make
from imagegpt.errors import InputError
from imagegpt.train.objectives import draw_masks
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Recipe
from imagegpt.train.training import Gradient, Training, rows_per_forward
from reference import training as reference

COLORS, LENGTH, ROWS = 7, 6, 8
IDS = np.random.default_rng(1).integers(0, COLORS, (ROWS, LENGTH))
OBJECTIVES = ["ar", "bert"]
CPU = Processes(0, 1, torch.device("cpu"))


def prepared(objective="ar", **values) -> Training:
    """A tiny network with large weights, ready to train; a batch of 8."""
    dropout = values.get("dropout", 0.0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = make(vocab_size=COLORS + 1, n_positions=LENGTH, n_embd=8, **rates)
    if objective == "bert":
        model.config.is_causal = False
    given = {"batch": ROWS, "objective": objective, "mask": 0.4, **values}
    return Training(model, Recipe.from_flat(given, "here"), CPU)


def arrays(training):
    return {name: weight.detach().numpy().copy() for name, weight in training.parameters.items()}


def gradients(training):
    return {name: weight.grad.numpy().copy() for name, weight in training.parameters.items()}


def expected_loss(training, position=0, ids=IDS):
    config = training.config.to_dict()
    if training.recipe.shape.objective == "ar":
        return lambda state: reference.ar_loss(state, config, ids)
    masks = draw_masks((0, 1, position), len(ids), LENGTH, 0.4)
    return lambda state: reference.bert_loss(state, config, ids, masks)


def check_equal(found, expected, rel):
    """Each array's largest error is a part of its largest number."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= rel * np.abs(values).max(), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_are_the_references(objective):
    training = prepared(objective)
    gradient = training.gradient(IDS, position=3)
    loss, state, found = expected_loss(training, position=3), arrays(training), gradients(training)
    assert gradient.loss == pytest.approx(loss(state), rel=1e-6)
    rng = np.random.default_rng(0)
    for name, values in found.items():
        # Where the gradient is largest, and anywhere: a kind of parameter has at least two slopes.
        places = [np.abs(values).argmax(), rng.integers(values.size)]
        for place in places:
            index = np.unravel_index(place, values.shape)
            slope = reference.slope(loss, state, name, index)
            assert abs(values[index] - slope) <= 1e-5 * np.abs(values).max(), (name, index)


def test_loss_and_gradients_are_those_of_transformers_model():
    training = prepared()
    config = theirs.ImageGPTConfig(**training.config.spec.__dict__, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = theirs.ImageGPTForCausalImageModeling(config).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(training.parameters[name])
    sos = np.full((ROWS, 1), COLORS)
    logits = model(torch.from_numpy(np.concatenate([sos, IDS[:, :-1]], 1)), use_cache=False).logits
    log_p = logits.log_softmax(-1)
    loss = -torch.stack([log_p[b, t, IDS[b, t]] for b in range(ROWS) for t in range(LENGTH)]).mean()
    loss.backward()
    gradient = training.gradient(IDS, 0)
    assert gradient.loss == pytest.approx(loss.item(), rel=1e-6)
    check_equal(gradients(training), {name: w.grad.numpy() for name, w in model.named_parameters()}, 1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_norm_is_the_whole_gradients(objective):
    training = prepared(objective)
    gradient = training.gradient(IDS, 0)
    squares = sum((values.astype(np.float64) ** 2).sum() for values in gradients(training).values())
    assert gradient.norm == pytest.approx(math.sqrt(squares), rel=1e-6)
    assert not gradient.overflowed


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_gradients_are_those_of_one_forward(objective, accumulate):
    whole, parts = prepared(objective), prepared(objective, accumulate=accumulate)
    first, second = whole.gradient(IDS, 5), parts.gradient(IDS, 5)
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    assert second.norm == pytest.approx(first.norm, rel=1e-6)
    check_equal(gradients(parts), gradients(whole), 1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_checkpointing_gives_the_same_gradients(objective):
    plain, spared = prepared(objective), prepared(objective, checkpointing=True)
    assert spared.gradient(IDS, 0).loss == plain.gradient(IDS, 0).loss
    check_equal(gradients(spared), gradients(plain), 1e-6)
    assert spared.model.transformer.gradient_checkpointing


def test_checkpointing_draws_the_same_dropout_again():
    plain, spared = prepared(dropout=0.3), prepared(dropout=0.3, checkpointing=True)
    assert spared.gradient(IDS, 0).loss == plain.gradient(IDS, 0).loss
    check_equal(gradients(spared), gradients(plain), 1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bfloat16_is_close_and_its_gradients_are_float32(objective):
    full, half = prepared(objective), prepared(objective, precision="bf16")
    exact, rough = full.gradient(IDS, 0), half.gradient(IDS, 0)
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert rough.loss != exact.loss
    assert all(weight.dtype == weight.grad.dtype == torch.float32 for weight in half.parameters.values())
    found, expected = (np.concatenate([g.ravel() for g in gradients(t).values()]) for t in (half, full))
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_compiled_gradients_are_the_same(objective):
    plain, compiled = prepared(objective), prepared(objective, compile=True)
    for position in range(2):
        first, second = plain.gradient(IDS, position), compiled.gradient(IDS, position)
        assert second.loss == pytest.approx(first.loss, rel=1e-6)
        check_equal(gradients(compiled), gradients(plain), 1e-5)
        for training, gradient in ((plain, first), (compiled, second)):
            training.step(gradient, 1e-3)
    check_equal(arrays(compiled), arrays(plain), 1e-4)


def test_float16_needs_a_gpu():
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        prepared(precision="fp16")


def test_masks_are_a_function_of_seed_and_position():
    def losses(seed, positions):
        training = prepared("bert", seed=seed)
        return [training.gradient(IDS, position).loss for position in positions]

    first = losses(0, [0, 1, 2])
    assert len(set(first)) == 3
    assert losses(0, [2, 0]) != first and losses(0, [2, 0])[1] == pytest.approx(first[0])
    assert losses(1, [0])[0] != first[0]


def fresh_losses(positions, seed=0):
    """Losses of positions under dropout, whatever was drawn before."""
    torch.manual_seed(len(positions))
    training = prepared(dropout=0.3, seed=seed)
    found = []
    for position in positions:
        torch.rand(position + 1)
        found.append(training.gradient(IDS, position).loss)
        training.forget()
    return found


def test_dropout_is_a_function_of_seed_and_position():
    first = fresh_losses([0, 1, 2])
    assert len(set(first)) == 3
    assert fresh_losses([2, 1]) == [first[2], first[1]]
    assert fresh_losses([0], seed=1) != [first[0]]


def test_dropout_differs_between_the_forwards_of_an_update():
    rows = np.repeat(IDS[:1], ROWS, 0)
    training = prepared(dropout=0.3, accumulate=2)
    losses = []
    training._ready.register_forward_hook(lambda module, inputs, loss: losses.append(loss.item()))
    training.gradient(rows, 0)
    assert len(losses) == 2 and losses[0] != losses[1]


def expected_adamw(training, steps, factors, **recipe):
    """Weights after updates of AdamW, from gradients of the same network; embeddings and matrices decay."""
    taken, start = [], arrays(training)
    for position, factor in zip(range(steps), factors, strict=True):
        gradient = training.gradient(IDS, position)
        taken.append((gradients(training), gradient.norm))
        training.step(gradient, factor)
    options = training.recipe.optimization
    found = {}
    for name, weight in start.items():
        cuts = [min(1.0, options.clip / norm) if options.clip else 1.0 for _, norm in taken]
        moved = [cut * grads[name].astype(np.float64) for cut, (grads, _) in zip(cuts, taken, strict=True)]
        decay = options.weight_decay if weight.ndim > 1 else 0.0
        rates = [options.lr * factor for factor in factors]
        found[name] = reference.adamw(weight, moved, rates, options.beta1, options.beta2, options.eps, decay)
    return found


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.1}, {"clip": 0.2}, {"beta1": 0.5, "beta2": 0.7}])
def test_updates_are_adamws(changes):
    training = prepared(lr=0.01, eps=1e-4, **changes)
    expected = expected_adamw(training, 4, [0.5, 1.0, 1.0, 0.25])
    check_equal(arrays(training), expected, 1e-5)


def test_updates_of_muon_are_the_references():
    training = prepared(optimizer="muon", lr=0.01, muon_lr=0.05, eps=1e-4, weight_decay=0.1)
    start, taken, factors = arrays(training), [], [0.5, 1.0, 0.25]
    for position, factor in enumerate(factors):
        gradient = training.gradient(IDS, position)
        taken.append(gradients(training))
        training.step(gradient, factor)
    found = arrays(training)
    for name, weight in start.items():
        if ".h." not in name or weight.ndim < 2:
            continue
        parts, moved = 3 if "c_attn" in name else 1, [grads[name] for grads in taken]
        rates = [0.05 * factor for factor in factors]
        expected = reference.muon(weight, moved, rates, parts, weight_decay=0.1)
        np.testing.assert_allclose(found[name], expected, atol=1e-4, err_msg=name)
    moved = [grads["lm_head.weight"] for grads in taken]
    expected = reference.adamw(start["lm_head.weight"], moved, [0.01 * f for f in factors], 0.9, 0.95, 1e-4, 0.1)
    np.testing.assert_allclose(found["lm_head.weight"], expected, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_the_gradient_is_cut_to_the_norm_that_is_asked_for(clip, monkeypatch):
    training = prepared(clip=clip)
    gradient = training.gradient(IDS, 0)
    before, seen = gradients(training), {}
    monkeypatch.setattr(training.optimizers[0], "step", lambda: seen.update(gradients(training)))
    training.step(gradient, 1.0)
    factor = clip / gradient.norm if 0 < clip < gradient.norm else 1.0
    check_equal(seen, {name: values * factor for name, values in before.items()}, 1e-4)


def test_gradients_do_not_add_up_over_updates():
    training = prepared(lr=1e-12)
    first = training.gradient(IDS, 0)
    training.step(first, 1.0)
    assert all(weight.grad is None for weight in training.parameters.values())
    assert training.gradient(IDS, 1).norm == pytest.approx(first.norm, rel=1e-6)


def test_a_forgotten_gradient_leaves_no_trace():
    training, other = prepared(), prepared()
    training.gradient(IDS[::-1].copy(), 0)
    training.forget()
    for one in (training, other):
        one.step(one.gradient(IDS, 1), 1.0)
    check_equal(arrays(training), arrays(other), 0)


def test_an_update_that_overflowed_is_left_out():
    training = prepared(ema=0.5, lr=0.1)
    before, average = arrays(training), {name: values.clone() for name, values in training.ema.items()}
    training.gradient(IDS, 0)
    training.step(Gradient(1.0, math.inf, overflowed=True), 1.0)
    check_equal(arrays(training), before, 0)
    assert all(torch.equal(training.ema[name], values) for name, values in average.items())
    assert not training.optimizers[0].state
    assert all(weight.grad is None for weight in training.parameters.values())


def test_the_loss_scale_leaves_gradients_and_loss_as_they_are():
    plain, scaled = prepared(), prepared()
    scaled.scale.used, scaled.scale.factor = True, 1024.0
    first, second = plain.gradient(IDS, 0), scaled.gradient(IDS, 0)
    assert (second.loss, second.norm) == (first.loss, pytest.approx(first.norm))
    check_equal(gradients(scaled), gradients(plain), 1e-6)
    scaled.scale.factor = 3e38 * 10  # inf: every gradient overflows
    scaled.forget()
    third = scaled.gradient(IDS, 1)
    assert third.overflowed and not math.isfinite(third.norm)


def test_averages_are_those_of_a_plain_loop():
    training = prepared(ema=0.9, lr=0.05)
    expected = {name: values.astype(np.float64) for name, values in arrays(training).items()}
    for position in range(5):
        training.step(training.gradient(IDS, position), 1.0)
        for name, weight in arrays(training).items():
            expected[name] = 0.9 * expected[name] + 0.1 * weight
    check_equal({name: values.numpy() for name, values in training.ema.items()}, expected, 1e-5)
    assert training.weights() is training.ema


def test_without_averages_the_weights_count():
    training = prepared()
    assert training.ema is None and training.weights() is training.parameters


def test_evaluation_has_the_averages_and_leaves_no_trace():
    training, undisturbed = prepared(ema=0.5, lr=0.1, dropout=0.2), prepared(ema=0.5, lr=0.1, dropout=0.2)
    for one in (training, undisturbed):
        one.step(one.gradient(IDS, 0), 1.0)
    weights, averages = arrays(training), {name: values.numpy().copy() for name, values in training.ema.items()}
    assert np.abs(weights["lm_head.weight"] - averages["lm_head.weight"]).max() > 0.01
    with training.evaluating():
        check_equal(arrays(training), averages, 0)
        assert not training.model.training
        assert training.loss(IDS) == pytest.approx(expected_loss(training)(averages), rel=1e-6)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled() and training.model.training
    check_equal(arrays(training), weights, 0)
    check_equal({name: values.numpy() for name, values in training.ema.items()}, averages, 0)
    for one in (training, undisturbed):
        one.step(one.gradient(IDS, 1), 1.0)
    check_equal(arrays(training), arrays(undisturbed), 0)


def test_evaluation_that_fails_leaves_no_trace_either():
    training = prepared(ema=0.5, lr=0.1)
    training.step(training.gradient(IDS, 0), 1.0)
    weights = arrays(training)
    with pytest.raises(KeyError), training.evaluating():
        raise KeyError
    check_equal(arrays(training), weights, 0)
    assert training.model.training


@pytest.mark.parametrize(("batch", "processes", "accumulate", "rows"), [(8, 1, 1, 8), (8, 2, 2, 2), (6, 3, 2, 1)])
def test_rows_of_a_forward(batch, processes, accumulate, rows):
    assert rows_per_forward(batch, processes, accumulate) == rows


@pytest.mark.parametrize(
    ("batch", "processes", "accumulate", "near"), [(8, 1, 3, "6 or 9"), (2, 4, 1, "4"), (10, 2, 2, "8 or 12")]
)
def test_batches_that_do_not_divide_are_told_with_the_nearest(batch, processes, accumulate, near):
    told = rf"batch of {batch} .* {processes} processes x {accumulate} forwards: take --batch {near}, or"
    with pytest.raises(InputError, match=told):
        rows_per_forward(batch, processes, accumulate)
    with pytest.raises(InputError, match="does not divide"):
        prepared(accumulate=3)


def test_one_process_is_spread_over_nothing():
    for strategy in ("ddp", "fsdp"):
        training = prepared(strategy=strategy)
        assert training._ready is training.objective
        assert not training.model.transformer.gradient_checkpointing
