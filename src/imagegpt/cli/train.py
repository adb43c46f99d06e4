"""imagegpt train"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imagegpt.cli.options import Json, place_among_processes
from imagegpt.cli.output import keeping, print_record
from imagegpt.errors import InputError
from imagegpt.train.recipe import Recipe, read_recipe


def from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the values of --recipe to the arguments that the command line leaves open; cyclopts calls it."""
    [named] = [argument for argument in arguments if argument.name == "--recipe"]
    if named.tokens:
        name = named.tokens[0].value
        # Without the commands' names: cyclopts would leave out `train` and `palette`, which are verbs too.
        typed = [argument.name.removeprefix("--") for argument in arguments if argument.tokens]
        Dict(read_recipe(name, typed), source=name)(app, (), arguments)


trainer = App(name="train", help="Train a network on pictures, from their pixels alone.", config=from_recipe)


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
    from imagegpt.train.loop import train as run

    chosen = values or Recipe()
    place = place_among_processes()
    if find_lr:
        suggest(chosen, out, place, json_)
        return
    with keeping(out), showing(place[0] == 0) as display:
        summary = run(
            chosen, out, place=place, evaluators=evaluators(chosen), tell=display.tell, working=display.working
        )
    if place[0] == 0:
        best = summary["best"]
        note = f"; best validation {best['nats_per_token']:.4f} nats/token at update {best['step']}" if best else ""
        sentence = f"{summary['model']}: {summary['steps']} updates in {summary['seconds']:.1f} s{note}"
        print_record(summary, json_, sentence)


def suggest(recipe: Recipe, out: Path, place: tuple[int, int], as_json: bool) -> None:
    """Run the learning-rate finder and print what it found."""
    from imagegpt.train.finder import run_finder

    with keeping(out), showing(place[0] == 0) as display:
        found = run_finder(recipe, out, place=place, working=display.working)
    if place[0] == 0:
        flags = " ".join(f"--{name.replace('_', '-')} {found[name]:.2g}" for name in ("lr", "muon_lr") if name in found)
        print_record(found, as_json, f"{flags} ({found['updates']} updates; the curve is in {out / 'lr.json'})")


def evaluators(recipe: Recipe) -> Mapping[str, Any]:
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


class Display:
    """What a terminal shows of a run: a bar, and a line for what is rare.

    Args:
        progress: the bar.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = progress.add_task("loading", total=None, note="")

    def working(self, words: str, done: int, total: int) -> None:
        """Before the first update."""
        self._progress.update(self._bar, description=words, completed=done, total=total)

    def tell(self, kind: str, record: dict[str, Any]) -> None:
        """An event of the loop."""
        if kind == "step":
            note = f"{record['loss']:.3f} nats/token, {record['ids_per_s']:,.0f} ids/s, {100 * record['mfu']:.0f} % MFU"
            self._progress.update(
                self._bar, description="training", completed=record["step"], total=record["steps"], note=note
            )
        elif line := LINES[kind](record) if kind in LINES else None:
            self._progress.console.print(line, highlight=False, markup=False)


def _validation(record: dict[str, Any]) -> str:
    nats, bits = record["nats_per_token"], record["bits_per_dim"]
    return f"update {record['step']}: {nats:.4f} nats/token, {bits:.4f} bits/dim ({record['codec']}) on validation"


LINES = {
    "start": lambda record: (
        f"update {record['step']} of {record['steps']}: {record['parameters']:,} parameters, {record['pictures']:,} "
        f"pictures, {record['processes']} x {record['device']}"
        + (f"; {record['skipped']} pictures could not be read" if record["skipped"] else "")
    ),
    "validation": _validation,
    "samples": lambda record: f"update {record['step']}: samples in {record['path']}",
    "probe": lambda record: f"update {record['step']}: linear probe {100 * record['accuracy']:.2f} %",
    "rollback": lambda record: f"{record['trouble']} Back to update {record['to']}, without the data since then.",
    "skipped": lambda record: f"skipped: {record['sentence']}",
}


@contextmanager
def showing(shown: bool) -> Iterator[Display]:
    """The display of the first process; the others show nothing."""
    console = Console(stderr=True, quiet=not shown, soft_wrap=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as progress:
        yield Display(progress)
