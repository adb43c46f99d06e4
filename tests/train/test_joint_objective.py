"""The joint objective: both losses and their gradients are those of the slow reference and of the separate models."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import classifiers
from imagegpt.config import ImageGPTConfig
from imagegpt.engine.torch_features import TorchFeatures
from imagegpt.errors import InputError
from imagegpt.metrics import average_precision
from imagegpt.model.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.model.joint import ImageGPTForJointModeling
from imagegpt.train.evaluation import fixed_masks
from imagegpt.train.evaluation import validate as validate_nats
from imagegpt.train.finetune_recipe import FinetuneRecipe
from imagegpt.train.finetuning import Finetuning
from imagegpt.train.joint import Criterion, Joint, draw_mixtures
from imagegpt.train.labels import MULTI, REGRESSION, SINGLE
from imagegpt.train.objectives import objective_of
from imagegpt.train.processes import Processes
from imagegpt.train.training import Training
from making import tokenise
from reference import finetuning as reference
from reference.training import slope
from training_runs import CODEC, ids, tokens

COLORS, LENGTH, ROWS, CLASSES, LAYERS = 7, 6, 4, 3, 3
IDS = torch.randint(COLORS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]]).bool()
MIXED = torch.tensor([0.7, 0.7, 0.1, 0.1])
TARGETS = {
    SINGLE: torch.tensor([2, 0, 1, 2]),
    MULTI: torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).float(),
    REGRESSION: torch.tensor([[0.5, -1, 2], [0, 0.25, 0], [3, 1, -2], [1, 1, 1]]).float(),
}
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CPU = Processes(0, 1, torch.device("cpu"))
each_network = pytest.mark.parametrize("causal", [True, False], ids=["ar", "bert"])
each_problem = pytest.mark.parametrize("problem", list(TARGETS))
each_weight = pytest.mark.parametrize("w", [0.0, 0.5, 1.0])
each_layer = pytest.mark.parametrize("layer", [None, 1, 2])


def config_of(causal=True, problem=SINGLE):
    sizes = {"vocab_size": COLORS + 1, "n_positions": LENGTH, "n_embd": 8, "n_layer": LAYERS, "n_head": 2}
    config = ImageGPTConfig(**sizes, **PLAIN, num_labels=CLASSES)
    config.problem_type = problem
    if not causal:
        config.is_causal = False
    else:
        config.classifier_start = True
    return config


def filled(model):
    """With large weights, none of which is another's."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + ("ln_" in name))
    return model.train()


def network(causal=True, problem=SINGLE, layer=None):
    return filled(ImageGPTForJointModeling(config_of(causal, problem), layer))


def alike(kind, model):
    """A network of another class with the same weights."""
    made = kind(model.config)
    made.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in made.state_dict()})
    return made.train()


def state_of(model):
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def check_equal(found, expected, rel):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= rel * values.abs().max(), name


def expected_losses(model, problem=SINGLE, ids_BT=IDS, targets=None, **more):
    causal = getattr(model.config, "is_causal", True)
    targets = (TARGETS[problem] if targets is None else targets).numpy()
    more = {name: value.numpy() if torch.is_tensor(value) else value for name, value in more.items()}
    config = model.config.to_dict()
    return partial(
        reference.losses,
        config=config,
        ids_BT=ids_BT.numpy(),
        targets=targets,
        problem=problem,
        causal=causal,
        **more,
    )


@each_network
@each_problem
@each_weight
def test_losses_are_the_references(causal, problem, w):
    model, mask = network(causal, problem), None if causal else MASK
    found = Joint(model, Criterion(problem), w)(IDS, mask, TARGETS[problem])
    class_loss, nats = expected_losses(model, problem, hidden_BT=mask)(state_of(model))
    expected = [class_loss, w * nats] if w else [class_loss]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@each_network
@pytest.mark.parametrize("layer", [1, 2])
def test_losses_of_a_head_at_a_middle_layer_are_the_references(causal, layer):
    model, mask = network(causal, layer=layer), None if causal else MASK
    found = Joint(model, Criterion(SINGLE), 0.5, layer)(IDS, mask, TARGETS[SINGLE])
    class_loss, nats = expected_losses(model, hidden_BT=mask, layer=layer)(state_of(model))
    assert found.tolist() == pytest.approx([class_loss, 0.5 * nats], rel=1e-5)


@pytest.mark.parametrize("problem", [SINGLE, MULTI])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.25]])
@pytest.mark.parametrize("mixed", [None, MIXED])
def test_smoothing_class_weights_and_mixup_are_the_references(problem, smoothing, weights, mixed):
    model = network(problem=problem)
    weights_C = None if weights is None else np.array(weights, np.float32)
    found = Joint(model, Criterion(problem, weights_C, smoothing))(IDS, None, TARGETS[problem], mixed)
    options = {"mixed_B": mixed, "weights_C": weights_C, "smoothing": smoothing}
    assert found.tolist() == pytest.approx(expected_losses(model, problem, **options)(state_of(model)), rel=1e-5)


@each_network
@each_problem
def test_mixed_losses_are_the_references(causal, problem):
    model, mask = network(causal, problem), None if causal else MASK
    found = Joint(model, Criterion(problem), 2.0)(IDS, mask, TARGETS[problem], MIXED)
    class_loss, nats = expected_losses(model, problem, hidden_BT=mask, mixed_B=MIXED)(state_of(model))
    assert found.tolist() == pytest.approx([class_loss, 2 * nats], rel=1e-5)


@each_problem
def test_a_loss_is_of_each_picture_and_float32(problem):
    logits = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(2)) * 2
    found = Criterion(problem)(logits, TARGETS[problem])
    pairs = zip(logits.double().numpy(), TARGETS[problem].numpy(), strict=True)
    expected = [reference.class_loss(row, target, problem) for row, target in pairs]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@each_network
@each_layer
@pytest.mark.parametrize("mixed", [None, MIXED])
def test_gradients_are_the_slopes_of_the_reference(causal, layer, mixed):
    model, mask = network(causal, layer=layer), None if causal else MASK
    weights_C = np.array([0.5, 2.0, 1.25], np.float32)
    objective = Joint(model, Criterion(SINGLE, weights_C, 0.1), 0.5, layer)
    found = gradients_of(model, objective(IDS, mask, TARGETS[SINGLE], mixed).sum())
    options = {"hidden_BT": mask, "mixed_B": mixed, "layer": layer, "weights_C": weights_C, "smoothing": 0.1}
    losses, state = expected_losses(model, **options), state_of(model)

    def loss(moved):
        class_loss, nats = losses(moved)
        return class_loss + 0.5 * nats

    assert found.keys() == state.keys()
    for name in state:
        if ".1." in name or ".2.mlp" in name:
            continue  # blocks are alike
        values = found[name].numpy()
        index = np.unravel_index(np.abs(values).argmax(), values.shape)
        assert values[index] == pytest.approx(slope(loss, state, name, index), rel=1e-4), name


@each_network
@each_problem
@each_layer
@pytest.mark.parametrize("w", [0.5, 1.0])
def test_gradients_are_the_sum_of_the_two_losses_gradients(causal, problem, layer, w):
    model, mask = network(causal, problem, layer), None if causal else MASK
    criterion = Criterion(problem)
    joint = gradients_of(model, Joint(model, criterion, w, layer)(IDS, mask, TARGETS[problem]).sum())
    class_alone = gradients_of(model, Joint(model, criterion, 0.0, layer)(IDS, mask, TARGETS[problem]).sum())
    # The other loss by what pretraining uses, from a network that knows of no classes.
    plain = alike(ImageGPTForCausalImageModeling, model)
    nats_alone = gradients_of(plain, objective_of(plain)(IDS, mask))
    assert joint.keys() == class_alone.keys() | nats_alone.keys() == dict(model.named_parameters()).keys()
    nothing = torch.zeros(())
    expected = {name: class_alone.get(name, nothing) + w * nats_alone.get(name, nothing) for name in joint}
    check_equal(joint, expected, 1e-5)


@each_network
@each_problem
def test_without_the_generative_loss_it_is_plain_classification(causal, problem):
    model = network(causal, problem)
    [loss] = losses = Joint(model, Criterion(problem), 0.0)(IDS, None, TARGETS[problem])
    plain = alike(ImageGPTForImageClassification, model)
    expected = plain(IDS, labels=TARGETS[problem]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found = gradients_of(model, losses.sum())
    assert "lm_head.weight" not in found
    check_equal(found, gradients_of(plain, expected), 1e-5)


@each_network
def test_the_classifiers_part_does_not_depend_on_the_generative_weight(causal):
    model, mask = network(causal), None if causal else MASK
    losses = [Joint(model, Criterion(SINGLE), w)(IDS, mask, TARGETS[SINGLE])[0].item() for w in (0.0, 0.5, 1.0)]
    assert losses[0] == losses[1] == losses[2]


def test_a_network_without_a_head_that_draws_can_be_trained():
    model = network()
    plain = alike(ImageGPTForImageClassification, model)
    found = Joint(plain, Criterion(SINGLE), 0.0)(IDS, None, TARGETS[SINGLE])
    assert found.tolist() == Joint(model, Criterion(SINGLE), 0.0)(IDS, None, TARGETS[SINGLE]).tolist()


@each_network
@pytest.mark.parametrize("layer", [1, 2])
def test_a_middle_head_reads_the_features_of_its_layer(causal, layer):
    """Behind the next block's norm, from which its own starts."""
    model = network(causal, layer=layer).eval()
    with torch.no_grad():
        model.ln_score.weight.copy_(model.transformer.h[layer].ln_1.weight)
        logits = Joint(model, Criterion(SINGLE), 1.0, layer)(IDS)[0]
    inputs = IDS
    if causal:
        inputs = torch.cat([torch.full((ROWS, 1), COLORS), IDS[:, :-1]], 1)
    [features_BD] = TorchFeatures(alike(ImageGPTForCausalImageModeling, model).eval(), [layer], "mean")(inputs.numpy())
    np.testing.assert_allclose(logits, features_BD @ state_of(model)["score.weight"].T, atol=1e-5)


@each_network
@each_layer
def test_predictions_are_logits_and_nats_of_each_picture(causal, layer):
    model, mask = network(causal, layer=layer).eval(), None if causal else MASK
    with torch.no_grad():
        logits, nats = Joint(model, Criterion(SINGLE), 0.0, layer)(IDS, mask)[:2]
    for row in range(ROWS):
        one = slice(row, row + 1)
        inputs = reference.inputs(
            state_of(model), IDS[row].numpy(), causal, None if mask is None else mask[row].numpy()
        )
        expected = reference.class_logits(state_of(model), model.config.to_dict(), inputs, causal, layer)
        np.testing.assert_allclose(logits[row], expected, atol=1e-5)
        losses = expected_losses(
            model,
            ids_BT=IDS[one],
            targets=TARGETS[SINGLE][one],
            hidden_BT=None if mask is None else mask[one],
            layer=layer,
        )
        assert nats[row].item() == pytest.approx(losses(state_of(model))[1], rel=1e-5)


def test_a_network_without_a_head_that_draws_predicts_no_nats():
    plain = alike(ImageGPTForImageClassification, network()).eval()
    logits, nats = Joint(plain, Criterion(SINGLE), 0.0)(IDS)[:2]
    assert nats is None
    assert torch.equal(logits, plain(IDS).logits)


@each_network
def test_pictures_that_are_not_mixed_are_themselves_and_those_wholly_mixed_their_partners(causal):
    model, mask = network(causal), None if causal else MASK[:1].expand(ROWS, -1)
    objective, targets = Joint(model, Criterion(SINGLE)), TARGETS[SINGLE]
    plain = objective(IDS, mask, targets).tolist()
    assert objective(IDS, mask, targets, torch.ones(ROWS)).tolist() == pytest.approx(plain, rel=1e-6)
    assert objective(IDS, mask, targets, torch.zeros(ROWS)).tolist() == pytest.approx(plain, rel=1e-6)
    alone = objective(IDS[2:], None if causal else mask[2:], targets[2:], MIXED[2:])
    swapped = torch.tensor([1, 0])
    other = objective(IDS[2:][swapped], None if causal else mask[2:], targets[2:][swapped], 1 - MIXED[2:])
    assert other.tolist() == pytest.approx(alone.tolist(), rel=1e-6)


def test_pairs_are_mixed_and_no_others():
    objective = Joint(network(), Criterion(SINGLE))
    whole = objective(IDS, None, TARGETS[SINGLE], MIXED)
    halves = [objective(IDS[at], None, TARGETS[SINGLE][at], MIXED[at]) for at in (slice(0, 2), slice(2, 4))]
    assert whole.tolist() == pytest.approx(((halves[0] + halves[1]) / 2).tolist(), rel=1e-6)


@each_network
@pytest.mark.parametrize("mixed", [None, MIXED])
def test_in_half_precision_logits_and_losses_are_float32(causal, mixed):
    model, mask = network(causal), None if causal else MASK
    objective = Joint(model, Criterion(SINGLE))
    exact = objective(IDS, mask, TARGETS[SINGLE], mixed)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(IDS, mask, TARGETS[SINGLE], mixed)
        logits, nats = objective(IDS, mask)[:2]
    assert losses.dtype == logits.dtype == nats.dtype == torch.float32
    assert losses.tolist() == pytest.approx(exact.tolist(), rel=0.03)
    assert losses.tolist() != exact.tolist()
    # The score itself is not rounded: what a bfloat16 product could not tell apart it does.
    assert not torch.equal(logits, logits.bfloat16().float())


def test_losses_are_told_by_their_names():
    model = network()
    assert Joint(model, Criterion(SINGLE), 0.5).describe([2.0, 0.25]) == {"class_loss": 2.0, "generative_loss": 0.5}
    assert Joint(model, Criterion(SINGLE), 0.0).describe([2.0]) == {"class_loss": 2.0}


def test_mixtures_follow_their_key():
    first, again, other = (draw_mixtures(key, 50, 0.4) for key in ((0, 4, 2), (0, 4, 2), (0, 4, 3)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert first.dtype == np.float32 and first.shape == (100,)
    np.testing.assert_array_equal(first[::2], first[1::2])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixtures_are_of_the_beta_distribution(alpha):
    found = draw_mixtures((0, 4, 0), 20000, alpha)[::2].astype(np.float64)
    assert found.min() >= 0 and found.max() <= 1
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


# By the recipe, on tokenised data.


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a causal and a bidirectional model, and of training and validation data in two classes."""
    folder = tmp_path_factory.mktemp("finetuning")
    made = {name: classifiers.make(folder / name, causal=name == "ar") for name in ("ar", "bert")}
    made["train"] = tokens(folder / "train", 40, labelled=True)
    made["validation"] = tokens(folder / "validation", 37, seed=1, labelled=True)
    return made


def prepared(folders, out, model="ar", **values):
    """The task, its data, and its network in training with a classifier that is not 0."""
    given = {
        **{"model": str(folders[model]), "train": folders["train"], "validation": folders["validation"]},
        **{"batch": 8, "augment": "none", "device": "cpu", "mask": 0.4},
        **values,
    }
    task = Finetuning(FinetuneRecipe.from_flat(given, "here"))
    dataset = task.open(out, CPU)
    made = task.network(dataset, CPU)
    with torch.no_grad():
        drawn = torch.randn(made.model.score.weight.shape, generator=torch.Generator().manual_seed(3))
        made.model.score.weight.copy_(drawn)
    return task, dataset, Training(made.model, task.recipe, CPU, made.objective, made.rate)


def gradient_of(task, dataset, training, position=0):
    batch = dataset.batches(task.recipe, CPU).at(position)
    found = training.gradient(batch.ids_BT, position, dataset.more(batch))
    return found, {name: w.grad.clone() for name, w in training.parameters.items() if w.grad is not None}, batch


@pytest.mark.parametrize("model", ["ar", "bert"])
@pytest.mark.parametrize("values", [{}, {"mixup": 0.4}, {"generative": 0.0}, {"layer": 1, "class_weights": "1,3"}])
def test_accumulated_gradients_are_those_of_one_forward(folders, tmp_path, model, values):
    found = [prepared(folders, tmp_path, model, accumulate=parts, **values) for parts in (1, 2, 4)]
    [(whole, expected, _), *others] = [gradient_of(*one, position=3) for one in found]
    for gradient, gradients, _ in others:
        assert gradient.loss == pytest.approx(whole.loss, rel=1e-5)
        assert gradient.told == pytest.approx(whole.told, rel=1e-5)
        check_equal(gradients, expected, 1e-5)


@pytest.mark.parametrize("model", ["ar", "bert"])
@pytest.mark.parametrize("w", [0.0, 0.5])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_an_update_takes_the_batchs_labels_masks_and_mixtures(folders, tmp_path, model, w, mixup):
    task, dataset, training = prepared(folders, tmp_path, model, generative=w, mixup=mixup, class_weights="1,3")
    found, _, batch = gradient_of(task, dataset, training, position=2)
    more = dataset.more(batch)
    np.testing.assert_array_equal(more["targets"], batch.numbers % 2)  # the labels of the data
    options = {"weights_C": np.array([0.5, 1.5])}
    if mixup:
        options["mixed_B"] = draw_mixtures((0, 4, 2), 4, 0.4)
        np.testing.assert_array_equal(more["mixed_B"], options["mixed_B"])
    if model == "bert":
        options["hidden_BT"] = np.random.default_rng((0, 1, 2)).random((8, 64)) < 0.4
    state = state_of(training.model)
    class_loss, nats = reference.losses(
        state, training.config.to_dict(), batch.ids_BT, more["targets"], causal=model == "ar", **options
    )
    assert found.told["class_loss"] == pytest.approx(class_loss, rel=1e-5)
    assert found.loss == pytest.approx(class_loss + w * nats, rel=1e-5)
    assert ("generative_loss" in found.told) == bool(w)
    if w:
        assert found.told["generative_loss"] == pytest.approx(nats, rel=1e-5)


def test_processes_share_targets_and_mixtures_of_one_batch(folders, tmp_path):
    task, dataset, _ = prepared(folders, tmp_path, mixup=0.4)
    whole = dataset.more(dataset.batches(task.recipe, CPU).at(5))
    parts = []
    for rank in range(2):
        group = Processes(rank, 2, torch.device("cpu"))
        parts.append(task._more(dataset.labels, group, dataset.batches(task.recipe, group).at(5)))
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)


@pytest.mark.parametrize(("batch", "processes", "accumulate"), [(2, 1, 2), (6, 1, 2), (8, 2, 4), (6, 2, 1), (3, 1, 1)])
def test_pairs_that_a_forward_would_part_are_refused(folders, tmp_path, batch, processes, accumulate):
    values = {"mixup": 0.4, "batch": batch, "accumulate": accumulate, "patience": 0, "publish": "last"}
    task = Finetuning(FinetuneRecipe.from_flat({"model": str(folders["ar"]), "train": folders["train"], **values}, "x"))
    with pytest.raises(InputError, match=r"^--mixup mixes pairs of pictures: give a --batch that is even in every"):
        task.open(tmp_path, Processes(0, processes, torch.device("cpu")))


@pytest.mark.parametrize("model", ["ar", "bert"])
def test_validation_is_the_references(folders, tmp_path, model):
    task, dataset, training = prepared(folders, tmp_path, model, validation_limit=7)
    found = task.validate(training, dataset)
    state, config, rows = state_of(training.model), training.config.to_dict(), ids(37, 1)[:7]
    causal = model == "ar"
    logits = [reference.class_logits(state, config, reference.inputs(state, row, causal), causal) for row in rows]
    right = [int(row.argmax()) == number % 2 for number, row in enumerate(logits)]
    losses = [reference.class_loss(row, number % 2, SINGLE) for number, row in enumerate(logits)]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["class_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["pictures"] == 7
    masks = [None] if causal else [fixed_masks(rows, copy, 0, 0.4) for copy in range(5)]
    nats = [reference.losses(state, config, rows, np.zeros(7, int), causal=causal, hidden_BT=mask)[1] for mask in masks]
    assert found["nats_per_token"] == pytest.approx(np.mean(nats), rel=1e-5)


@pytest.mark.parametrize("model", ["ar", "bert"])
def test_validations_nats_are_those_of_pretraining(folders, tmp_path, model):
    task, dataset, training = prepared(folders, tmp_path, model)  # more than one forward
    found = task.validate(training, dataset)["nats_per_token"]
    plain = alike(ImageGPTForCausalImageModeling, training.model)
    expected = validate_nats(Training(plain, task.recipe, CPU), dataset.validation, dataset.codec)["nats_per_token"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_validation_without_a_head_that_draws_tells_no_nats(folders, tmp_path):
    task, dataset, training = prepared(folders, tmp_path, layer=1, generative=0.0)
    assert task.validate(training, dataset)["nats_per_token"] is None


def several(folder, labels):
    meta = {"codec": CODEC.fingerprint, "grid": [8, 8], "clusters": CODEC.clusters.astype(float).tolist()}
    return str(tokenise(folder, ids(len(labels)), labels, **meta, classes=[]))


@pytest.mark.parametrize("problem", [MULTI, REGRESSION])
def test_other_problems_are_validated_by_their_own_measure(folders, tmp_path, problem):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (20, 3)) if problem == MULTI else rng.normal(size=(20, 3))
    data = several(tmp_path / "data", labels)
    task, dataset, training = prepared(folders, tmp_path / "out", train=data, validation=data)
    found, metric = task.validate(training, dataset), task.metric(dataset)
    state, config = state_of(training.model), training.config.to_dict()
    logits = [reference.class_logits(state, config, reference.inputs(state, row)) for row in ids(20)]
    losses = [reference.class_loss(row, target, problem) for row, target in zip(logits, labels, strict=True)]
    if problem == MULTI:
        assert metric == ("average_precision", True)
        assert found["class_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert found["average_precision"] == pytest.approx(average_precision(np.array(logits), labels).mean())
    else:
        assert metric == ("squared_error", False)
        assert found["squared_error"] == pytest.approx(np.mean(losses), rel=1e-5)
    gradient, _, batch = gradient_of(task, dataset, training)
    expected = reference.losses(state, config, batch.ids_BT, labels[batch.numbers], problem)
    assert gradient.loss == pytest.approx(sum(expected), rel=1e-5)


def test_the_classifier_learns(folders, tmp_path):
    """A few updates on one batch: both losses fall."""
    task, dataset, training = prepared(folders, tmp_path, lr=0.01)
    batch = dataset.batches(task.recipe, CPU).at(0)
    told = []
    for _ in range(15):
        gradient = training.gradient(batch.ids_BT, 0, dataset.more(batch))
        training.step(gradient, 1.0)
        told.append(gradient.told)
    assert told[-1]["class_loss"] < 0.5 * told[0]["class_loss"]
    assert told[-1]["generative_loss"] < told[0]["generative_loss"]
