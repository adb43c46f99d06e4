"""imagegpt finetune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from imagegpt.cli.options import Json
from imagegpt.cli.train import carry_out, from_recipe
from imagegpt.errors import InputError
from imagegpt.train.finetune_recipe import FinetuneRecipe

finetuner = App(
    name="finetune", help="Make a classifier of a model and labelled pictures.", config=from_recipe(FinetuneRecipe)
)


@finetuner.default
def finetune(
    *,
    out: Path,
    recipe: Annotated[str | None, Parameter(name="--recipe")] = None,
    find_lr: Annotated[bool, Parameter(negative="")] = False,
    values: Annotated[FinetuneRecipe | None, Parameter(name="*")] = None,
    json_: Json = False,
) -> None:
    """Make a classifier of a model and labelled pictures.

    The classifier reads the mean of the last states; the whole network learns to tell the classes, and goes on learning
    to predict pixels. The run ends when the validation pictures are told no better, and its model is the best one.
    Stopped runs continue with the same command. Several processes share a run after `torchrun`, as in `imagegpt train`.

    Args:
        out: folder of the run: its log, checkpoints, and at the end the model.
        recipe: a YAML file, or the name of a recipe that comes with the package; what else is given goes over it.
        find_lr: train a hundred updates at rising step sizes, suggest one, and stop.
        values: of the recipe.
        json_: print the summary as JSON.
    """
    chosen = values or FinetuneRecipe()
    if chosen.watch.probe_every:
        raise InputError("--probe-every is of `imagegpt train`: here the validations tell how well classes are known.")
    carry_out(chosen, out, find_lr, json_, "loss")
