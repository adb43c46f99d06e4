"""Recipes of fine-tuning: the paper's values, limits, what a model completes, and what can't be.

What they share with those of pretraining is in test_recipe.py.
"""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch
import yaml

import classifiers
from imagegpt.errors import InputError
from imagegpt.train.finetune_recipe import FinetuneRecipe, GentleOptimization, LabelledData, WatchForBest
from imagegpt.train.finetuning import Finetuning
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Data, Optimization, Recipe, Watch
from imagegpt.train.task import Pretraining, task_of
from training_runs import pictures

CPU = Processes(0, 1, torch.device("cpu"))


def test_defaults_are_the_papers():
    """Section 3.4: both losses, the same batch, a tenth of the step size, no cosine, an end by validation accuracy."""
    recipe = FinetuneRecipe()
    head, data, optimization, watch = recipe.head, recipe.data, recipe.optimization, recipe.watch
    assert (head.model, head.start, head.problem, head.generative) == ("nano", "model", "auto", 1.0)
    assert (head.layer, head.freeze, head.lora, head.layer_decay, head.head_rate) == (None, 0, 0, 1.0, 1.0)
    assert (head.class_weights, head.smoothing, head.mixup, head.dropout) == (None, 0.0, 0.0, 0.0)
    assert (head.least, head.mask, recipe.mask, recipe.dropout) == (2, 0.15, 0.15, 0.0)
    assert (data.augment, data.grid, data.crop) == ("cifar", None, "center")
    assert (optimization.batch, optimization.optimizer, optimization.schedule) == (128, "adamw", "constant")
    theirs = Optimization()
    assert (10 * optimization.lr, 10 * optimization.muon_lr) == pytest.approx((theirs.lr, theirs.muon_lr))
    assert (optimization.beta1, optimization.beta2, optimization.weight_decay) == (0.9, 0.95, 0.0)
    assert (optimization.steps, optimization.epochs, optimization.warmup) == (None, None, None)
    assert (watch.validate_every, watch.patience, watch.publish) == (None, 3, "best")
    assert recipe.compute.precision == "fp32"


@pytest.mark.parametrize(
    ("ours", "theirs", "others"),
    [
        (LabelledData, Data, {"augment"}),
        (GentleOptimization, Optimization, {"lr", "muon_lr", "schedule"}),
        (WatchForBest, Watch, {"validate_every", "patience", "publish"}),
    ],
)
def test_other_values_are_pretrainings(ours, theirs, others):
    assert [field.name for field in dataclasses.fields(ours)] == [field.name for field in dataclasses.fields(theirs)]
    found, expected = vars(ours()), vars(theirs())
    assert {name for name in found if found[name] != expected[name]} == others
    assert typing.get_type_hints(ours) == typing.get_type_hints(theirs)  # whatever help they come with


def test_values_reach_the_field_of_their_name():
    recipe = FinetuneRecipe.load(layer=5, mask=0.5, dropout=0.1, lr=0.5, grid="4x6", patience=9, model="mine")
    assert (recipe.head.layer, recipe.head.mask, recipe.head.model) == (5, 0.5, "mine")
    assert (recipe.mask, recipe.dropout, recipe.grid) == (0.5, 0.1, (4, 6))
    assert (recipe.optimization.lr, recipe.watch.patience) == (0.5, 9)


def test_the_papers_recipe_changes_no_default():
    given = FinetuneRecipe.read("paper")
    flat = FinetuneRecipe().flat()
    assert {name: value for name, value in given.items() if flat[name] != value} == {"epochs": 20}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"generative": -0.5}, "generative must be at least 0, not -0.5"),
        ({"generative": float("nan")}, "generative must be from 0 to 1e+18, not nan"),
        ({"generative": float("inf")}, "generative must be from 0 to 1e+18, not inf"),
        ({"layer": -1}, "layer must be at least 0, not -1"),
        ({"freeze": -1}, "freeze must be at least 0, not -1"),
        ({"layer_decay": 0.0}, "layer_decay must be from 1e-06 to 1e+06, not 0.0"),
        ({"layer_decay": -1.0}, "layer_decay must be from 1e-06 to 1e+06, not -1.0"),
        ({"head_rate": -1.0}, "head_rate must be at least 0, not -1.0"),
        ({"lora": -1}, "lora must be at least 0, not -1"),
        ({"lora_alpha": 0.0}, "lora_alpha must be from 1e-06 to 1e+06, not 0.0"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1, not 1.0"),
        ({"smoothing": -0.1}, "smoothing must be at least 0 and below 1, not -0.1"),
        ({"mixup": -0.1}, "mixup must be at least 0, not -0.1"),
        ({"least": -1}, "least must be at least 0, not -1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"mask": 0.0}, "mask must be from 1e-06 to 1, not 0.0"),
        ({"patience": -1}, "patience must be at least 0, not -1"),
        ({"validate_every": -1}, "validate_every must be at least 0, not -1"),
        ({"problem": "ranking"}, "problem must be one of auto, single, multi, regression, not 'ranking'"),
        ({"start": "anew"}, "start must be one of model, paper, hf, informed, not 'anew'"),
        ({"publish": "all"}, "publish must be one of last, best, not 'all'"),
        ({"lora": 2.5}, "lora must be a whole number, not 2.5"),
        ({"class_weights": 2.0}, "class_weights must be a text, not 2.0"),
        ({"size": "small"}, "a recipe has no 'size'"),
        ({"modle": "x"}, "a recipe has no 'modle'. Did you mean model?"),
        ({"steps": 1, "epochs": 1.0}, "Give steps or epochs, not both."),
    ],
)
def test_what_can_not_be_is_told(values, told):
    with pytest.raises(InputError) as refusal:
        FinetuneRecipe.load(**values)
    assert told in str(refusal.value)


@pytest.mark.parametrize("values", [{"freeze": 1}, {"start": "paper"}, {"start": "hf", "freeze": 2}])
def test_adapters_of_what_does_not_stay_are_told(values):
    told = r"^--lora trains adapters of a network that stays as it is: leave --freeze and --start out\.$"
    with pytest.raises(InputError, match=told):
        FinetuneRecipe.load(lora=4, **values)
    assert FinetuneRecipe.load(lora=0, **values).head.lora == 0
    assert FinetuneRecipe.load(lora=4, layer=1).head.lora == 4


@pytest.mark.parametrize("weights", ["balanced", "1,2", "0.5"])
def test_class_weights_in_yaml(tmp_path, weights):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"class_weights": weights}))
    assert FinetuneRecipe.load(path).head.class_weights == weights


def test_recipes_of_the_two_verbs_are_not_exchanged(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FinetuneRecipe().flat(), sort_keys=False))
    with pytest.raises(InputError, match=f"^{path}: a recipe has no 'model'"):
        Recipe.load(path)
    path.write_text(yaml.safe_dump(Recipe().flat(), sort_keys=False))
    with pytest.raises(InputError, match=f"^{path}: a recipe has no 'size'"):
        FinetuneRecipe.load(path)
    with pytest.raises(InputError, match="There is no recipe 'debug'"):
        FinetuneRecipe.load("debug")


# What a model completes.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifiers.make(tmp_path_factory.mktemp("models") / "tiny")


def completed(folder, **values):
    given = {"model": str(folder), "train": "train", "validation": "validation", **values}
    return Finetuning(FinetuneRecipe.from_flat(given, "here")).recipe


def test_the_grid_is_the_models_and_there_are_20_epochs(folder):
    recipe = completed(folder)
    assert (recipe.data.grid, recipe.grid) == ("8x8", (8, 8))
    assert (recipe.optimization.epochs, recipe.optimization.steps) == (20.0, None)
    assert completed("nano").grid == (32, 32)
    open_values = {"grid": None, "epochs": None}
    assert {**recipe.flat(), **open_values} == FinetuneRecipe.from_flat(
        {"model": str(folder), "train": "train", "validation": "validation"}, "here"
    ).flat()


def test_what_is_given_stays(folder):
    recipe = completed(folder, grid="12x6", steps=7)
    assert (recipe.data.grid, recipe.optimization.steps, recipe.optimization.epochs) == ("12x6", 7, None)
    assert completed(folder, epochs=2.5).optimization.epochs == 2.5


def test_a_completed_recipe_is_complete(folder):
    recipe = completed(folder)
    assert Finetuning(recipe).recipe == recipe


@pytest.mark.parametrize("without", [{"validation": None}, {"validate_every": 0}])
@pytest.mark.parametrize("values", [{}, {"patience": 0}, {"publish": "last"}])
def test_an_end_by_validation_needs_validations(folder, without, values):
    with pytest.raises(InputError) as refusal:
        completed(folder, **without, **values)
    assert str(refusal.value) == (
        "Fine-tuning stops by pictures that it is not trained on: give --validation DATA and leave --validate-every 0 "
        "out, or give --patience 0 --publish last."
    )


def test_without_an_end_by_validation_none_are_needed(folder):
    assert completed(folder, validation=None, patience=0, publish="last").data.validation is None
    assert completed(folder, validate_every=0, patience=0, publish="last").watch.validate_every == 0


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match=r"^There is no model 'nanu': give nano, a model folder"):
        completed("nanu")


def test_a_recipe_is_of_its_task(folder):
    assert isinstance(task_of(FinetuneRecipe.from_flat({"model": str(folder), "validation": "x"}, "")), Finetuning)
    assert isinstance(task_of(Recipe()), Pretraining)


def opened(folder, out, **values):
    data = pictures(out / "pictures", 12)
    given = {"model": str(folder), "train": data, "patience": 0, "publish": "last", "augment": "none", **values}
    return Finetuning(FinetuneRecipe.from_flat(given, "here")).open(out / "run", CPU)


def test_data_have_the_labels_that_are_asked_for(folder, tmp_path):
    labels = opened(folder, tmp_path / "single", batch=4).labels
    assert (tmp_path / "single" / "run" / "data" / "train").exists()
    assert (labels.problem, labels.classes) == ("single_label_classification", ("cat", "dog"))
    labels = opened(folder, tmp_path / "regression", batch=4, problem="regression").labels
    assert (labels.problem, labels.classes) == ("regression", ("0",))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch": 3, "mixup": 0.2}, "--mixup mixes pairs of pictures: give a --batch that is even in every forward."),
        ({"batch": 6, "accumulate": 2, "mixup": 0.2}, "--mixup mixes pairs"),
        ({"least": 7}, "the class 'cat' has too few pictures, 6; each must have 7"),
        ({"class_weights": "1,2,3"}, "--class-weights: 2 classes need as many numbers above 0, not '1,2,3'."),
        ({"layer": 3}, "--layer must be 1 to 2"),
        ({"freeze": 3}, "--freeze must be 0 to 2"),
        ({"problem": "multi"}, "several classes a picture are a row of 0 and 1"),
        ({"layer": 1, "sample_every": 5}, "has no head that draws: leave --sample-every out."),
        ({"layer": 1, "generative": 0.0, "sample_every": 5}, "has no head that draws: leave --sample-every out."),
        ({"train": None}, "There is nothing to train on: give --train DATA."),
    ],
)
def test_what_model_and_data_do_not_allow_is_told_before_ids_are_made(folder, tmp_path, values, told):
    with pytest.raises(InputError) as refusal:
        opened(folder, tmp_path, **{"batch": 4, **values})
    assert told in str(refusal.value)
    assert not (tmp_path / "run").exists()
