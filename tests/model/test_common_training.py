"""Training: losses, gradients, checkpointing, and steps that lower the loss, for each of the three classes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from faces import (
    CLASSES,
    LAYERS,
    Causal,
    Classifier,
    D,
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

each_mode = pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
# torch's reentrant checkpointing and PEFT tell the same things again and again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

PROBLEMS = {
    "single_label_classification": torch.tensor([2, 0, 1, 2]),
    "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]]),
    "regression": torch.tensor([[0.5, -2.0, 7.0], [1.0, 0, 0], [0, 0, 3.0], [-1.0, 1, 1]]),
}
each_problem = pytest.mark.parametrize("problem", PROBLEMS)


def objective(model, **inputs):
    """The loss, or for the trunk some number that depends on all states."""
    ids = inputs.pop("input_ids", random_ids(3))
    if isinstance(model, Trunk):
        return model(ids, **inputs).last_hidden_state.square().mean()
    return model(ids, labels=labels_for(type(model), ids), **inputs).loss


def loss_and_gradients(model, seed=0, **inputs):
    model.zero_grad()
    torch.manual_seed(seed)
    loss = objective(model.train(), **inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(got, expected):
    assert_equal(got[0], expected[0], atol=1e-6)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert got[1][name] is not None, name
        torch.testing.assert_close(got[1][name], gradient, atol=1e-6, rtol=1e-4)


# Steps.


@each_face
def test_every_weight_has_a_gradient(face):
    _, gradients = loss_and_gradients(make(face))
    assert [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["next id", *PROBLEMS])
def test_a_few_steps_lower_the_loss(head, dtype):
    torch.manual_seed(0)
    model = make(Causal) if head == "next id" else make(Classifier, problem_type=head)
    ids = random_ids(4)
    labels = ids if head == "next id" else PROBLEMS[head]
    model.to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        losses.append(model(ids, labels=labels).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    assert all(loss.dtype == torch.float32 for loss in losses)


@each_face
def test_a_step_under_autocast_gives_full_precision_gradients_near_the_exact_ones(face):
    loss, gradients = loss_and_gradients(make(face))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, mixed_gradients = loss_and_gradients(make(face))
    assert mixed == pytest.approx(loss.item(), rel=0.03)
    for name, gradient in gradients.items():
        assert mixed_gradients[name].dtype == torch.float32
        assert (mixed_gradients[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_a_frozen_trunk_leaves_the_head_to_learn():
    model = make(Classifier)
    model.transformer.requires_grad_(False)
    _, gradients = loss_and_gradients(model)
    assert set(gradients) == {"score.weight"}
    assert gradients["score.weight"].any()


@pytest.mark.parametrize("face", [Trunk, Causal])
def test_gradients_reach_the_encoder(face):
    states = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    _, gradients = loss_and_gradients(make(face, add_cross_attention=True), encoder_hidden_states=states)
    assert (states.grad.abs().sum(-1) > 0).all()
    assert all(gradient.any() for gradient in gradients.values())


# Losses of the classifier.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_problem
def test_the_losses_are_those_of_torch(problem, dtype):
    model, labels = make(Classifier, problem_type=problem).to(dtype), PROBLEMS[problem]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as mse_loss's about shapes
        output = model(random_ids(4), labels=labels)
    measure = {
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[problem]
    assert_equal(output.loss, measure(output.logits.float(), labels), atol=1e-6)


@pytest.mark.parametrize("items", [7, torch.tensor(7)], ids=["int", "tensor"])
@each_problem
def test_with_the_number_of_items_the_loss_is_the_sum_over_them(problem, items):
    model, labels = make(Classifier, problem_type=problem), PROBLEMS[problem]
    mean = model(random_ids(4), labels=labels).loss
    assert_equal(model(random_ids(4), labels=labels, num_items_in_batch=items).loss, mean * labels.numel() / 7)


@pytest.mark.parametrize("items", [7, torch.tensor(7)], ids=["int", "tensor"])
def test_with_the_number_of_items_the_loss_of_ids_is_the_sum_over_them(items):
    model, ids = make(Causal), random_ids(4)
    labels = ids.clone()
    labels[0, 5:] = -100
    counted = 4 * (T - 1) - (T - 5)
    expected = model(ids, labels=labels).loss * counted / 7
    assert_equal(model(ids, labels=labels, num_items_in_batch=items).loss, expected)
    assert_equal(model.image_loss(ids, items), model.image_loss(ids) * 4 * T / 7)


@pytest.mark.parametrize(
    ("problem", "classes", "labels"),
    [
        ("regression", 1, torch.tensor([0.5, 2.0, -1.0, 0.0])),
        ("regression", 1, torch.tensor([1, 2, 3, 4])),
        ("single_label_classification", CLASSES, PROBLEMS["single_label_classification"]),
        ("multi_label_classification", CLASSES, PROBLEMS["multi_label_classification"]),
    ],
)
def test_the_labels_tell_the_problem_and_it_stays(problem, classes, labels):
    model = make(Classifier, num_labels=classes)
    got = model(random_ids(4), labels=labels).loss
    assert model.config.problem_type == problem
    assert_equal(got, make(Classifier, num_labels=classes, problem_type=problem)(random_ids(4), labels=labels).loss)


@pytest.mark.parametrize(
    ("problem", "labels", "told"),
    [
        ("single_label_classification", torch.tensor([0, 1, 2, CLASSES]), "class numbers, 0..2"),
        ("multi_label_classification", torch.zeros(4), r"labels of shape \(4, 3\), not \(4,\)"),
        ("regression", torch.zeros(4), r"labels of shape \(4, 3\)"),
        ("ranking", torch.zeros(4), "problem_type is 'ranking'"),
    ],
)
def test_labels_that_do_not_fit_the_problem_are_a_value_error(problem, labels, told):
    model = make(Classifier)
    model.config.problem_type = problem
    with pytest.raises(ValueError, match=told):
        model(random_ids(4), labels=labels)


# Gradient checkpointing.


@each_mode
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"attention_mask": padding_mask("...111111111", "111111111111", "111111......")},
        {"head_mask": torch.tensor([[1.0, 0.5], [0.0, 1.0]])},
        {"output_hidden_states": True, "output_attentions": True, "use_cache": True},
    ],
    ids=lambda inputs: "+".join(inputs) or "plain",
)
@each_face
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(face, inputs, reentrant):
    dropout = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}  # drawn again as they were
    expected = loss_and_gradients(make(face, **dropout), **inputs)
    model, runs = make(face, **dropout), []
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.base_model.h[0].ln_1.register_forward_hook(lambda *_: runs.append(1))
    assert_same_gradients(loss_and_gradients(model, **inputs), expected)
    assert len(runs) == 2  # forward, and again for the backward pass
    assert (loss_and_gradients(model, seed=1, **inputs)[0] - expected[0]).abs() > 1e-4  # so dropout acted


@each_mode
@pytest.mark.parametrize("face", [Trunk, Causal])
def test_gradient_checkpointing_keeps_the_gradients_of_an_encoder(face, reentrant):
    results = []
    for checkpointing in (False, True):
        model = make(face, add_cross_attention=True)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        images = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(0), requires_grad=True)
        loss, gradients = loss_and_gradients(model, encoder_hidden_states=images.tanh())  # as an encoder computes them
        results.append((loss, {**gradients, "encoder": images.grad}))
    assert_same_gradients(results[1], results[0])


@each_face
def test_gradient_checkpointing_is_switched_on_and_off_in_every_module(face):
    model = make(face)
    switches = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert len(switches) == LAYERS + 1
    assert not model.is_activation_checkpointing
    for switch, state in (
        (model.activation_checkpointing_enable, True),
        (model.activation_checkpointing_disable, False),
    ):
        switch()
        assert model.is_activation_checkpointing is state
        assert {module.gradient_checkpointing for module in switches} == {state}


@each_face
def test_a_config_of_old_may_ask_for_gradient_checkpointing(face):
    assert make(face, gradient_checkpointing=True).is_activation_checkpointing


@torch.no_grad()
def test_checkpointing_leaves_evaluation_and_its_cache_alone():
    model = make(Causal)
    expected = model(random_ids())
    model.activation_checkpointing_enable()
    assert_equal(model(random_ids()).to_tuple(), expected.to_tuple())


def test_a_past_can_not_be_used_while_checkpointing():
    model = make(Causal)
    past = model(random_ids(2, 4)).past_key_values
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model.train()(random_ids(2, 4), past_key_values=past)


# Gradients of the inputs, and adapters.


@each_mode
@each_face
def test_a_block_in_a_frozen_model_learns_through_checkpointing(face, reentrant):
    results = []
    for checkpointing in (False, True):
        model = make(face)
        model.requires_grad_(False)
        model.base_model.h[0].requires_grad_(True)  # below it nothing needs a gradient but what is made to
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        results.append(loss_and_gradients(model))
    assert all(gradient.any() for gradient in results[0][1].values())
    assert_same_gradients(results[1], results[0])


@each_face
def test_inputs_can_be_made_to_need_gradients_and_again_not_to(face):
    model = make(face)
    model.requires_grad_(False)
    assert not objective(model).requires_grad
    model.enable_input_require_grads()
    assert objective(model).requires_grad
    model.disable_input_require_grads()
    assert not objective(model).requires_grad


@each_mode
@each_face
def test_adapters_have_the_same_gradients_with_checkpointing(face, reentrant):
    peft = pytest.importorskip("peft")
    results = []
    for checkpointing in (False, True):
        model = make(face)
        torch.manual_seed(0)
        model.add_adapter(peft.LoraConfig(target_modules=["c_attn", "c_fc"], r=2, init_lora_weights=False))
        if checkpointing:  # which must make the embeddings need gradients, for nothing below the adapters does
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        results.append(loss_and_gradients(model))
        assert not any(gradient is None for gradient in results[-1][1].values())
    assert len(results[0][1]) == LAYERS * 2 * 2
    assert_same_gradients(results[1], results[0])


# The arithmetic of the backward pass.


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@each_face
def test_gradients_equal_those_by_finite_differences(face, implementation):
    model = make(face, n_embd=8).double()
    model.set_attn_implementation(implementation)
    model.requires_grad_(False)
    embeds = model.get_input_embeddings()(random_ids(1, 4)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda embeds: main_output(model(inputs_embeds=embeds)), embeds)


def test_a_model_can_be_called_with_other_weights():
    model, ids = make(Causal), random_ids()
    doubled = {name: parameter * 2 for name, parameter in model.named_parameters()}
    logits = torch.func.functional_call(model, doubled, (ids,)).logits
    other = make(Causal)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert_equal(logits, other(ids).logits)
    assert (logits - model(ids).logits).abs().max() > 0.1
