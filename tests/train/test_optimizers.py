"""Optimisers and step sizes: equal to the closed forms, and to updates in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from by_hand import make
from imagegpt.errors import InputError
from imagegpt.train.muon import Muon
from imagegpt.train.optimizers import Schedule, optimizers_of, schedule_of, set_rates
from imagegpt.train.recipe import Optimization
from reference import training

FORMS = ["cosine", "linear", "constant"]
RUNS = st.tuples(st.integers(1, 300), st.integers(0, 300)).filter(lambda run: run[1] < run[0])


def factors(*args):
    schedule = Schedule(*args)
    return [schedule.factor(step) for step in range(schedule.steps)]


@given(RUNS)
def test_cosine_is_its_closed_form(run):
    steps, warmup = run
    expected = [training.cosine(step, steps, warmup) for step in range(steps)]
    np.testing.assert_allclose(factors(steps, warmup, "cosine"), expected, atol=1e-12)


@given(RUNS, st.floats(0.01, 1))
def test_linear_is_its_closed_form(run, decay):
    steps, warmup = run
    expected = [training.linear(step, steps, warmup, decay) for step in range(steps)]
    np.testing.assert_allclose(factors(steps, warmup, "linear", decay), expected, atol=1e-12)


@given(st.integers(1, 300), st.integers(0, 400), st.sampled_from(FORMS), st.floats(0, 1))
def test_every_factor_is_a_part_of_the_highest_and_none_is_zero(steps, warmup, form, decay):
    found = factors(steps, warmup, form, decay)
    assert all(0 < factor <= 1 for factor in found)
    assert found == factors(steps, warmup, form, decay)


@given(RUNS, st.sampled_from(FORMS), st.floats(0, 0.5))
def test_factors_rise_to_the_top_and_do_not_rise_again(run, form, decay):
    steps, warmup = run
    found = factors(steps, warmup, form, decay)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    if warmup and warmup <= steps - decay * steps:
        assert found[:warmup] == [(step + 1) / warmup for step in range(warmup)]


@given(st.integers(50, 1000), st.integers(0, 20))
def test_cosine_ends_near_zero(steps, warmup):
    assert factors(steps, warmup, "cosine")[-1] < 0.01


@given(st.integers(10, 1000), st.floats(0.1, 0.9))
def test_linear_is_constant_before_its_decay_and_ends_near_zero(steps, decay):
    found = factors(steps, 0, "linear", decay)
    assert set(found[: int(steps * (1 - decay))]) == {1.0}
    assert found[-1] == pytest.approx(1 / (decay * steps), abs=1e-12) or decay * steps < 1


def test_constant_stays_at_the_top_and_linear_without_decay_too():
    assert factors(10, 2, "constant") == [0.5] + [1.0] * 9
    assert factors(10, 2, "linear", 0.0) == [0.5] + [1.0] * 9


@pytest.mark.parametrize(
    ("values", "steps", "warmup"),
    [
        ({"steps": 1000}, 1000, 50),  # an epoch, as in the paper
        ({"steps": 200}, 200, 20),  # or a tenth of all
        ({"epochs": 3.0}, 150, 15),
        ({"epochs": 0.001}, 1, 0),
        ({"epochs": 0.51}, 26, 2),
        ({"steps": 200, "warmup": 0.0}, 200, 0),
        ({"steps": 200, "warmup": 0.25}, 200, 50),
        ({"steps": 200, "warmup": 1.0}, 200, 1),
        ({"steps": 200, "warmup": 30.0}, 200, 30),
    ],
)
def test_length_and_warmup_of_a_recipe(values, steps, warmup):
    schedule = schedule_of(Optimization(**values), per_epoch=50)
    assert (schedule.steps, schedule.warmup) == (steps, warmup)


def test_form_and_decay_are_the_recipes():
    schedule = schedule_of(Optimization(steps=10, schedule="linear", decay=0.7), 5)
    assert (schedule.form, schedule.decay) == ("linear", 0.7)


def test_a_recipe_without_a_length_is_told():
    with pytest.raises(InputError, match="--steps or --epochs"):
        schedule_of(Optimization(), 50)


def named():
    return dict(make(vocab_size=8, n_positions=6, n_embd=8).named_parameters())


def names_of(parameters, weights):
    found = {id(weight): name for name, weight in parameters.items()}
    return {found[id(weight)] for weight in weights}


def test_adamw_has_every_weight_once_and_spares_norms_and_biases():
    parameters = named()
    [adam] = optimizers_of(parameters, Optimization(weight_decay=0.1, lr=0.5, eps=1e-9, beta1=0.8), torch.float32)
    assert isinstance(adam, torch.optim.AdamW)
    deep, flat = adam.param_groups
    assert names_of(parameters, deep["params"]) == {name for name in parameters if parameters[name].ndim == 2}
    assert names_of(parameters, flat["params"]) == {name for name in parameters if parameters[name].ndim == 1}
    assert (deep["weight_decay"], flat["weight_decay"]) == (0.1, 0.0)
    for group in (deep, flat):
        assert (group["lr"], group["peak"], group["eps"], group["betas"]) == (0.5, 0.5, 1e-9, (0.8, 0.95))


def test_muon_has_the_blocks_matrices_and_adam_the_rest():
    parameters = named()
    recipe = Optimization(optimizer="muon", lr=0.5, muon_lr=0.25, weight_decay=0.1)
    muon, adam = optimizers_of(parameters, recipe, torch.bfloat16)
    assert isinstance(muon, Muon) and muon.dtype == torch.bfloat16
    joined, single = muon.param_groups
    assert names_of(parameters, joined["params"]) == {f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)}
    ends = ("attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert names_of(parameters, single["params"]) == {f"transformer.h.{i}.{end}" for i in range(2) for end in ends}
    assert (joined["parts"], single["parts"]) == (3, 1)
    deep, flat = adam.param_groups
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}
    assert names_of(parameters, deep["params"]) == embeddings
    assert names_of(parameters, flat["params"]) == {name for name in parameters if parameters[name].ndim == 1}
    assert {group["peak"] for group in muon.param_groups} == {0.25}
    assert {group["weight_decay"] for group in muon.param_groups} == {0.1}
    assert {group["peak"] for group in adam.param_groups} == {0.5}
    assert (deep["weight_decay"], flat["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weights_that_are_frozen_are_left_out(kind):
    parameters = named()
    frozen = ["transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"]
    for name in frozen:
        parameters[name].requires_grad_(False)
    found = optimizers_of(parameters, Optimization(optimizer=kind), torch.float32)
    groups = [group["params"] for optimizer in found for group in optimizer.param_groups]
    assert names_of(parameters, [weight for group in groups for weight in group]) == set(parameters) - set(frozen)


def test_rates_are_parts_of_the_highest_each_time():
    found = optimizers_of(named(), Optimization(optimizer="muon", lr=0.5, muon_lr=0.25), torch.float32)
    for factor in (0.5, 0.1):
        set_rates(found, factor)
    assert [group["lr"] for optimizer in found for group in optimizer.param_groups] == [0.025, 0.025, 0.05, 0.05]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_is_the_plain_updates(weight_decay):
    rng = np.random.default_rng(0)
    recipe = Optimization(lr=0.1, weight_decay=weight_decay, eps=1e-3)
    start, gradients, parts = rng.normal(size=(4, 5)), rng.normal(size=(6, 4, 5)), [0.2, 0.6, 1.0, 1.0, 0.5, 0.1]
    for shape, decay in (((4, 5), weight_decay), ((20,), 0.0)):
        weight = torch.nn.Parameter(torch.tensor(start.reshape(shape), dtype=torch.float32))
        optimizers = optimizers_of({"x": weight}, recipe, torch.float32)
        for gradient, part in zip(gradients, parts, strict=True):
            weight.grad = torch.tensor(gradient.reshape(shape), dtype=torch.float32)
            set_rates(optimizers, part)
            optimizers[0].step()
        rates = [0.1 * part for part in parts]
        expected = training.adamw(start, gradients, rates, 0.9, 0.95, 1e-3, decay)
        np.testing.assert_allclose(weight.detach().numpy().reshape(4, 5), expected, atol=1e-6)
