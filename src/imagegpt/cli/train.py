"""imagegpt train"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from imagegpt.cli.display import best_of, showing
from imagegpt.cli.options import Json, place_among_processes
from imagegpt.cli.output import keeping, print_record
from imagegpt.errors import InputError
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.recipe import Recipe

Config = Callable[[App, tuple[str, ...], ArgumentCollection], None]


def from_recipe(kind: type[FlatRecipe]) -> Config:
    """Gives the values of --recipe to the arguments that the command line leaves open; cyclopts calls it."""

    def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        [named] = [argument for argument in arguments if argument.name == "--recipe"]
        if named.tokens:
            name = named.tokens[0].value
            # Without the commands' names: cyclopts would leave out `train` and `palette`, which are verbs too.
            typed = [argument.name.removeprefix("--") for argument in arguments if argument.tokens]
            Dict(kind.read(name, typed), source=name)(app, (), arguments)

    return fill


trainer = App(name="train", help="Train a network on pictures, from their pixels alone.", config=from_recipe(Recipe))


@trainer.default
def train(
    *,
    out: Path,
    recipe: Annotated[str | None, Parameter(name="--recipe")] = None,
    find_lr: Annotated[bool, Parameter(negative="")] = False,
    values: Annotated[Recipe | None, Parameter(name="*")] = None,
    json_: Json = False,
) -> None:
    """Train a network on pictures, from their pixels alone.

    Stopped runs continue with the same command, from their newest checkpoint. Several processes, on one machine or on
    many, share a run after `torchrun --nproc-per-node 8 --no-python --`.

    Args:
        out: folder of the run: its log, checkpoints, sheets of samples, and at the end the model.
        recipe: a YAML file, or the name of a recipe that comes with the package; what else is given goes over it.
        find_lr: train a hundred updates at rising step sizes, suggest one, and stop.
        values: of the recipe.
        json_: print the summary as JSON.
    """
    carry_out(values or Recipe(), out, find_lr, json_)


def carry_out(recipe: FlatRecipe, out: Path, find_lr: bool, as_json: bool, unit: str = "nats/token") -> None:
    """Train by a recipe of any verb, or find its step sizes, and print what came of it.

    Args:
        recipe: everything that decides the run.
        out: folder of the run.
        find_lr: suggest step sizes instead.
        as_json: print JSON.
        unit: of the loss.
    """
    from imagegpt.train.loop import train as run

    place = place_among_processes()
    if find_lr:
        suggest(recipe, out, place, as_json)
        return
    with keeping(out), showing(place[0] == 0, unit) as display:
        evaluate = evaluators(recipe)
        summary = run(recipe, out, place=place, evaluators=evaluate, tell=display.tell, working=display.working)
    if place[0] == 0:
        sentence = f"{summary['model']}: {summary['step']} updates in {summary['seconds']:.1f} s{best_of(summary)}"
        print_record(summary, as_json, sentence)


def suggest(recipe: FlatRecipe, out: Path, place: tuple[int, int], as_json: bool) -> None:
    """Run the learning-rate finder and print what it found."""
    from imagegpt.train.finder import run_finder

    with keeping(out), showing(place[0] == 0) as display:
        found = run_finder(recipe, out, place=place, working=display.working)
    if place[0] == 0:
        flags = " ".join(f"--{name.replace('_', '-')} {found[name]:.2g}" for name in ("lr", "muon_lr") if name in found)
        print_record(found, as_json, f"{flags} ({found['updates']} updates; the curve is in {out / 'lr.json'})")


def evaluators(recipe: FlatRecipe) -> Mapping[str, Any]:
    """What a recipe asks of the network besides its loss: the online linear probe."""
    if not recipe.watch.probe_every:
        return {}
    if recipe.data.validation is None or recipe.data.train is None:
        raise InputError("--probe-every needs --validation: pictures with labels that the probe is tested on.")
    from imagegpt.data.sources import open_source
    from imagegpt.probe.online import OnlineProbe

    labels, count = recipe.data.label_column, recipe.watch.probe_pictures
    train = open_source(recipe.data.train, labels)
    test = open_source(recipe.data.validation, labels, recipe.data.validation_limit)
    return {"probe": OnlineProbe(train, test, count, recipe.watch.probe_layer, recipe.optimization.seed)}
