"""Recipes: flat names in YAML and on the command line, the paper's values where nothing is said, mistakes told."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegpt.errors import InputError
from imagegpt.train.codec_recipe import CodecRecipe
from imagegpt.train.finetune_recipe import FinetuneRecipe
from imagegpt.train.flat import LIMITS
from imagegpt.train.recipe import Recipe

VERBS = (Recipe, FinetuneRecipe, CodecRecipe)
RECIPES = [(verb, path) for verb in VERBS for path in verb.shipped().values()]
PARTS = {verb: [typing.get_type_hints(verb)[field.name] for field in dataclasses.fields(verb)] for verb in VERBS}
KINDS = {
    verb: {field.name: typing.get_type_hints(part)[field.name] for part in parts for field in dataclasses.fields(part)}
    for verb, parts in PARTS.items()
}
each_verb = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.verb)


def values_of(name, kind):
    """A strategy for what may stand behind a name."""
    kinds = [one for one in get_args(kind) if one is not type(None)] if get_origin(kind) is not Literal else []
    optional, kind = (True, kinds[0]) if kinds else (False, kind)
    low, high = LIMITS.get(name, (0, 0))
    found = {
        int: lambda: st.integers(int(low), int(min(high, 10**12))),
        float: lambda: st.floats(low, min(high, 1e12)),
        bool: st.booleans,
        str: lambda: st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=8),
    }
    special = {
        "grid": st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda sides: f"{sides[0]}x{sides[1]}"),
        "factor": st.sampled_from([2, 4, 8]),
        "augment": st.sampled_from(["none", "cifar", "imagenet", "flip,pad"]),
    }
    if get_origin(kind) is Literal:
        chosen = st.sampled_from(get_args(kind))
    else:
        chosen = special[name] if name in special else found[kind]()
    return st.none() | chosen if optional else chosen


def can_be(values):
    """Whether they don't exclude one another."""
    both = values.get("steps") is not None and values.get("epochs") is not None
    adapted = values.get("lora") and (values.get("freeze") or values.get("start", "model") != "model")
    return not both and not adapted


# What a VQ-VAE has no choice of, though its recipe shares the parts that say it.
FIXED = {CodecRecipe: {"optimizer", "checkpointing", "compile", "strategy", "probe_every", "width"}}
ANY = {
    verb: st.fixed_dictionaries(
        {},
        optional={name: values_of(name, kind) for name, kind in kinds.items() if name not in FIXED.get(verb, ())},
    )
    for verb, kinds in KINDS.items()
}


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("verb", "path"), RECIPES, ids=lambda part: getattr(part, "stem", ""))
def test_shipped_recipe_loads_by_name_and_as_a_file(verb, path):
    recipe = verb.load(path.stem)
    assert recipe == verb.load(path)
    flat = recipe.flat()
    assert {name: flat[name] for name in verb.read(path.stem)} == verb.read(path)
    assert (flat["steps"] is None) != (flat["epochs"] is None)  # how long is said


def test_recipes_are_shipped():
    assert {"cifar10-nano", "debug"} <= {path.stem for verb, path in RECIPES if verb is Recipe}


def test_defaults_are_the_papers():
    recipe = Recipe()
    shape, data, optimization = recipe.shape, recipe.data, recipe.optimization
    assert (shape.size, shape.dropout, shape.objective, shape.start) == ("small", 0.0, "ar", "paper")
    assert (shape.mask, shape.width, shape.layers, shape.heads, shape.init) == (0.15, None, None, None, None)
    assert (shape.colors, recipe.grid, data.crop, data.augment) == (512, (32, 32), "center", "none")
    assert (optimization.batch, optimization.optimizer, optimization.lr) == (128, "adamw", 3e-3)
    assert (optimization.beta1, optimization.beta2, optimization.weight_decay) == (0.9, 0.95, 0.0)
    assert (optimization.schedule, optimization.warmup, optimization.clip) == ("cosine", None, 0.0)
    assert (optimization.accumulate, optimization.ema, optimization.steps, optimization.epochs) == (1, 0.0, None, None)
    assert (recipe.compute.precision, recipe.compute.strategy) == ("fp32", "ddp")
    assert (recipe.watch.on_spike, recipe.watch.spike, recipe.watch.tracker) == ("stop", 0.0, None)


@pytest.mark.parametrize("part", [part for parts in PARTS.values() for part in parts])
def test_every_name_is_documented_and_nothing_else(part):
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*):", inspect.getdoc(part).partition("Args:")[2], re.MULTILINE)
    documented = [name for entry in entries for name in entry.split(", ")]
    assert documented == [field.name for field in dataclasses.fields(part)]


@each_verb
def test_no_two_parts_share_a_name(verb):
    assert list(verb().flat()) == [field.name for part in PARTS[verb] for field in dataclasses.fields(part)]
    assert len(KINDS[verb]) == len(verb().flat())


def test_every_number_has_limits():
    every = [(name, kind) for kinds in KINDS.values() for name, kind in kinds.items()]
    numbers = {name for name, kind in every if {int, float} & {kind, *get_args(kind)}}
    assert set(LIMITS) == numbers - {"factor"}  # which is one of three


@each_verb
@settings(max_examples=60)
@given(data=st.data())
def test_flat_names_and_back(verb, data):
    values = data.draw(ANY[verb].filter(can_be))
    recipe = verb.from_flat(values, "here")
    flat = recipe.flat()
    assert {name: flat[name] for name in values} == values
    assert verb.from_flat(flat, "here") == recipe
    assert verb.from_flat(yaml.safe_load(yaml.safe_dump(flat, sort_keys=False)), "a file") == recipe


def test_values_reach_the_field_of_their_name():
    recipe = Recipe.load(lr=0.5, layers=3, grid="4x6", precision="bf16", keep=9)
    assert (recipe.optimization.lr, recipe.shape.layers, recipe.grid) == (0.5, 3, (4, 6))
    assert (recipe.compute.precision, recipe.watch.keep) == ("bf16", 9)


def test_what_is_given_goes_over_the_file(tmp_path):
    recipe = Recipe.load(written(tmp_path, "lr: 0.25\nbatch: 16\n"), batch=8)
    assert (recipe.optimization.lr, recipe.optimization.batch) == (0.25, 8)


@pytest.mark.parametrize(("given", "left"), [({"epochs": 2.0}, "steps"), ({"steps": 7}, "epochs")])
def test_a_given_length_replaces_the_files(tmp_path, given, left):
    path = written(tmp_path, "steps: 10\n" if left == "steps" else "epochs: 3\n")
    optimization = Recipe.load(path, **given).optimization
    assert vars(optimization)[left] is None
    assert vars(optimization)[next(iter(given))] == next(iter(given.values()))


@pytest.mark.parametrize(("text", "value"), [("3e-3", 3e-3), ("3.0e-3", 3e-3), ("1", 1.0), ("'0.5'", 0.5)])
def test_numbers_in_every_spelling_of_yaml(tmp_path, text, value):
    lr = Recipe.load(written(tmp_path, f"lr: {text}\n")).optimization.lr
    assert type(lr) is float and lr == value


def test_misspelt_name_is_told_with_the_file_and_the_right_one(tmp_path):
    path = written(tmp_path, "bach: 3\n")
    with pytest.raises(InputError) as told:
        Recipe.load(path)
    assert str(told.value) == f"{path}: a recipe has no 'bach'. Did you mean batch?"


def test_unknown_name_lists_those_there_are():
    with pytest.raises(InputError, match=r"has no 'xyzzy'\. Known are: size, width, .*, spike"):
        Recipe.load(xyzzy=1)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("batch: 2.5", "batch must be a whole number, not 2.5"),
        ("batch: true", "batch must be a whole number, not True"),
        ("batch:", "batch must be a whole number, not None"),
        ("steps: 1e3", "steps must be a whole number, not '1e3'"),
        ("lr: fast", "lr must be a number, not 'fast'"),
        ("lr: true", "lr must be a number, not True"),
        ("lr: [1]", r"lr must be a number, not \[1\]"),
        (f"lr: 1{'0' * 400}", "lr must be a number, not 10*"),
        ("compile: 1", "compile must be true or false, not 1"),
        ("codec: 512", "codec must be a text, not 512"),
        ("optimizer: sgd", "optimizer must be one of adamw, muon, not 'sgd'"),
        ("tracker: wandb", "tracker must be one of tensorboard, trackio, not 'wandb'"),
    ],
)
def test_wrong_type_is_told_with_the_file(tmp_path, line, told):
    path = written(tmp_path, line + "\n")
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {told}"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"keep": 0}, "keep must be at least 1, not 0"),
        ({"log_every": -1}, "log_every must be at least 0, not -1"),
        ({"lr": 0.0}, "lr must be "),
        ({"lr": float("nan")}, "lr must be .*, not nan"),
        ({"lr": float("inf")}, "lr must be .*, not inf"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"warmup": -1.0}, "warmup must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"beta2": 1.0}, "beta2 must be at least 0 and below 1, not 1.0"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1, not 1.0"),
        ({"decay": 1.5}, "decay must be from 0 to 1, not 1.5"),
        ({"mask": 0.0}, "mask must be from 1e-06 to 1, not 0.0"),
        ({"grid": "32"}, "grid must be HEIGHTxWIDTH, such as 32x32, not '32'"),
        ({"grid": "0x4"}, "grid must be HEIGHTxWIDTH"),
        ({"grid": "4x4x4"}, "grid must be HEIGHTxWIDTH"),
        ({"augment": "blur"}, "no augmentation 'blur'"),
        ({"steps": 1, "epochs": 1.0}, "steps or epochs, not both"),
    ],
)
def test_what_can_not_be_is_told(values, told):
    with pytest.raises(InputError, match=told):
        Recipe.load(**values)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr: [1", "can't be read as a recipe"),
        ("lr: 1\n\tbatch: 2", "can't be read as a recipe"),
        ("", "holds no recipe"),
        ("- lr", "holds no recipe"),
        ("just words", "holds no recipe"),
    ],
)
def test_broken_yaml_is_told_with_the_file(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} {told}"):
        Recipe.load(path)


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read as a recipe"):
        Recipe.load(path)


def test_yaml_makes_no_python_objects(tmp_path):
    with pytest.raises(InputError, match="can't be read as a recipe"):
        Recipe.load(written(tmp_path, "lr: !!python/object/apply:os.getcwd []\n"))


def test_unknown_recipe_is_told_with_the_nearest_or_all():
    with pytest.raises(InputError, match=r"There is no recipe 'debgu'\. Did you mean debug"):
        Recipe.load("debgu")
    with pytest.raises(InputError, match=r"Give a YAML file, or one of .*cifar10-nano, .*debug"):
        Recipe.load("xyzzy")
