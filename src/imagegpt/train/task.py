"""What a run is for: the loop is the same, and asks its task for data, network and worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imagegpt.codec.codec import grid_of
from imagegpt.codec.preprocessor_file import find_framed
from imagegpt.data.sources import open_source
from imagegpt.data.tokens import META
from imagegpt.train.checks import check_validations
from imagegpt.train.codec_recipe import CodecRecipe
from imagegpt.train.dataset import Dataset, Working, open_dataset
from imagegpt.train.evaluation import draw_samples, validate
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.network import Network
from imagegpt.train.objectives import objective_of
from imagegpt.train.processes import Processes
from imagegpt.train.recipe import Recipe
from imagegpt.train.start import new_model
from imagegpt.train.training import Training


class Metric(NamedTuple):
    """What tells which of a run's checkpoints is the best.

    Args:
        name: in the records of validations.
        rises: whether more of it is better.
    """

    name: str
    rises: bool

    def is_better(self, value: float, best: float) -> bool:
        """Whether a value is better than the best one so far."""
        return value > best if self.rises else value < best


class Task(Protocol):
    """What the loop asks."""

    @property
    def recipe(self) -> FlatRecipe:
        """Everything that decides the run, with nothing left open."""
        ...

    def open(self, out: Path, group: Processes, working: Working | None = None) -> Dataset:
        """The pictures."""
        ...

    def network(self, dataset: Dataset, group: Processes) -> Network:
        """The network at its start; the same in all processes."""
        ...

    def metric(self, dataset: Dataset) -> Metric:
        """What decides on the best."""
        ...

    def validate(self, training: Training, dataset: Dataset) -> dict[str, Any]:
        """What the network is worth on the validation pictures; called by all processes."""
        ...

    def draw(self, folder: Path, path: Path, dataset: Dataset, device: str) -> None:
        """Draw a sheet into `path` that shows what the network in a model folder can; always by the same numbers."""
        ...


class Pretraining:
    """Learn pictures from their ids alone.

    Args:
        recipe: everything that decides the run.

    Raises:
        InputError: an end or a choice by validations, without any; or a grid that can't be told.
    """

    def __init__(self, recipe: Recipe) -> None:
        check_validations(recipe)
        height, width = grid_meant(recipe)
        self.recipe = replace(recipe, data=replace(recipe.data, grid=f"{height}x{width}"))

    def open(self, out: Path, group: Processes, working: Working | None = None) -> Dataset:
        """The pictures."""
        return open_dataset(self.recipe, out, group, working)

    def network(self, dataset: Dataset, group: Processes) -> Network:
        """A new network, or one with other weights to start from."""
        recipe = self.recipe
        model = new_model(recipe.shape, dataset.codec, recipe.grid, recipe.optimization.seed, group.device)
        model.config.architectures = [type(model).__name__]
        return Network(model, objective_of(model))

    def metric(self, dataset: Dataset) -> Metric:
        """nats/token."""
        return Metric("nats_per_token", rises=False)

    def validate(self, training: Training, dataset: Dataset) -> dict[str, Any]:
        """nats/token of the validation pictures."""
        assert dataset.validation is not None
        return validate(training, dataset.validation, dataset.codec)

    def draw(self, folder: Path, path: Path, dataset: Dataset, device: str) -> None:
        """A sheet of samples."""
        draw_samples(folder, path, self.recipe.watch.samples, device)


def grid_meant(recipe: Recipe) -> tuple[int, int]:
    """The grid of ids that a recipe means: the one that it names, else that of its ids, else that of its codec."""
    train, codec = recipe.data.train, recipe.shape.codec
    if recipe.data.grid is None and train is not None and (Path(train) / META).is_file():
        tokens = open_source(train).tokens
        assert tokens is not None
        return tokens.grid
    if recipe.data.grid is None and codec not in (None, "fit"):
        return grid_of(*find_framed(codec))
    return recipe.grid


def task_of(recipe: FlatRecipe) -> Task:
    """The task that a recipe is of."""
    if isinstance(recipe, Recipe):
        return Pretraining(recipe)
    if isinstance(recipe, CodecRecipe):
        from imagegpt.train.codec_task import CodecTraining

        return CodecTraining(recipe)
    from imagegpt.train.finetuning import Finetuning  # which needs what the other does not

    return Finetuning(recipe)  # pyright: ignore[reportArgumentType]
