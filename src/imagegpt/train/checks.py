"""What is looked at before a run begins."""

from __future__ import annotations

from pathlib import Path

from imagegpt.errors import InputError
from imagegpt.train.codec_recipe import CodecRecipe
from imagegpt.train.finetune_recipe import FinetuneRecipe
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.optimizers import schedule_of
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Recipe
from imagegpt.train.training import check_precision, rows_per_forward

RECIPE, CHECKPOINTS = "recipe.yaml", "checkpoints"  # in the folder of a run
# A run that is continued may change what is watched and how it is computed, and how long it is.
FREE = ("train", "validation", "accumulate", "steps", "epochs", "init", "label_column")


def check_recipe(recipe: FlatRecipe, group: Processes) -> None:
    """Say what can't be before ids are made of all pictures, which takes time.

    Raises:
        InputError: a batch that does not divide, a precision that can't be had, or no end of the run.
    """
    options = recipe.optimization
    rows_per_forward(options.batch, group.count, options.accumulate)
    check_precision(recipe.compute.precision, group.device)
    schedule_of(options, per_epoch=1)


def check_validations(recipe: FlatRecipe) -> None:
    """Refuse a run that is to end or to choose by validations, and has none.

    Raises:
        InputError: nothing to validate on is named, or that is switched off.
    """
    if lacks_validations(recipe):
        option = "--patience" if recipe.watch.patience else "--publish best"
        hint = "give --validation DATA" if recipe.data.validation is None else "leave --validate-every 0 out"
        raise InputError(f"{option} goes by validations: {hint}, or leave {option} out.")


def lacks_validations(recipe: FlatRecipe) -> bool:
    """Whether a run is to end or to choose by validations, and has none."""
    watch = recipe.watch
    none = recipe.data.validation is None or watch.validate_every == 0
    return none and bool(watch.patience or watch.publish == "best")


def check_same_run(recipe: FlatRecipe, out: Path) -> None:
    """Refuse a folder with the checkpoints of another run.

    Raises:
        InputError: it is one; the message names what differs.
    """
    if not (out / RECIPE).exists() or not any((out / CHECKPOINTS).glob("step-*")):
        return
    if not recipe.can_read(out / RECIPE):
        for other in (Recipe, FinetuneRecipe, CodecRecipe):
            if other.can_read(out / RECIPE):
                raise InputError(f"{out} holds a run of `imagegpt {other.verb}`: choose another --out.")
    there = recipe.read(out / RECIPE)
    ours, free = recipe.flat(), {*FREE, *vars(recipe.compute), *vars(recipe.watch)}
    for name, value in ours.items():
        if name not in free and there.get(name) != value:
            raise InputError(
                f"{out} holds a run with {name} {there.get(name)}, not {value}: give the same to go on with it, "
                "or choose another --out."
            )
