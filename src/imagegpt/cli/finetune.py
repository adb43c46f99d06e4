"""imagegpt finetune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from imagegpt.cli.display import best_of, showing
from imagegpt.cli.options import Json, place_among_processes
from imagegpt.cli.output import keeping, print_record
from imagegpt.cli.train import from_recipe, suggest
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
    from imagegpt.train.loop import train as run

    chosen = values or FinetuneRecipe()
    place = place_among_processes()
    if chosen.watch.probe_every:
        raise InputError("--probe-every is of `imagegpt train`: here the validations tell how well classes are known.")
    if find_lr:
        suggest(chosen, out, place, json_)
        return
    with keeping(out), showing(place[0] == 0, "loss") as display:
        summary = run(chosen, out, place=place, tell=display.tell, working=display.working)
    if place[0] == 0:
        sentence = f"{summary['model']}: {summary['step']} updates in {summary['seconds']:.1f} s{best_of(summary)}"
        print_record(summary, json_, sentence)
