"""The learning-rate finder: how large a step a network stands (Smith 2017, "Cyclical Learning Rates", section 3.3)."""

from __future__ import annotations

import json
import math
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.errors import InputError, MissingExtra
from imagegpt.files import make_folder, write_text
from imagegpt.painting import Progress
from imagegpt.train.dataset import Dataset, Working
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.plot import plot_rates
from imagegpt.train.processes import processes
from imagegpt.train.recipe import Optimization
from imagegpt.train.task import task_of
from imagegpt.train.training import Training

SMOOTHING = 0.9  # of the losses' moving average
DIVERGED = 1.0  # nats/token above the best, after which the test ends
MARGIN = 3.0  # the rate of the best loss over this is suggested: there the loss still falls and nothing diverges
LOWEST = 1e-4  # of the recipe's step sizes, where the test begins
HIGHEST = 1e2


@dataclass(frozen=True)
class RateTest:
    """What a test of rising step sizes found.

    Args:
        factors: of the recipe's step sizes, at each update.
        losses: moving averages in nats/token.
        factor: the one that is suggested.
    """

    factors: list[float]
    losses: list[float]
    factor: float

    def as_dict(self, options: Optimization) -> dict[str, Any]:
        """The same as JSON has it: the step sizes that are suggested, and the curve over `lr`."""
        curve = [[options.lr * factor, loss] for factor, loss in zip(self.factors, self.losses, strict=True)]
        suggested = {"lr": options.lr * self.factor}
        if options.optimizer == "muon":
            suggested["muon_lr"] = options.muon_lr * self.factor
        return {**suggested, "updates": len(self.factors), "curve": curve}


def run_finder(
    recipe: FlatRecipe,
    out: Path,
    *,
    place: tuple[int, int] = (0, 1),
    updates: int = 100,
    working: Working | None = None,
) -> dict[str, Any]:
    """Suggest step sizes for a recipe; writes `out`/lr.json and, with matplotlib, `out`/lr.png.

    Args:
        recipe: all but its step sizes and schedule counts.
        out: the run's folder.
        place: rank and number of processes.
        updates: of the test.
        working: told of what takes time.

    Returns:
        `lr`, `muon_lr` where it is used, the updates that were made and the curve: pairs of `lr` and loss.
    """
    with processes(place, recipe.compute.device, recipe.compute.timeout) as group:
        make_folder(out)
        task = group.once(lambda: task_of(recipe))
        data = task.open(out, group, working if group.first else None)
        network = task.network(data, group)
        training = Training(network.model, task.recipe, group, network.objective, network.rate)

        def tell(done: int, total: int) -> None:
            if working is not None and group.first:
                working("updates at rising step sizes", done, total)

        test = find_rate(training, data, updates, tell)
        found = test.as_dict(recipe.optimization)
        if group.first:
            write_text(out / "lr.json", json.dumps(found, indent=1) + "\n")
            with suppress(MissingExtra):
                plot_rates(out / "lr.png", found)
        return found


def find_rate(training: Training, data: Dataset, updates: int = 100, progress: Progress | None = None) -> RateTest:
    """Train with step sizes that rise evenly in their logarithm until the loss diverges.

    All step sizes of the recipe rise together, from 1/10,000 of theirs to a hundred times. The network is of no use
    after it.

    Args:
        training: a new network.
        data: training pictures.
        updates: of the whole range.
        progress: called with (updates done, updates in all).

    Raises:
        InputError: the loss never falls, so that nothing can be suggested.
    """
    factors: list[float] = []
    losses: list[float] = []
    mean, best = 0.0, math.inf
    with closing(data.batches(training.recipe, training.group).stream(0)) as stream:
        for update, batch in zip(range(updates), stream, strict=False):
            factor = LOWEST * (HIGHEST / LOWEST) ** (update / max(1, updates - 1))
            gradient = training.gradient(batch.ids_BT, update, data.more(batch))
            mean = SMOOTHING * mean + (1 - SMOOTHING) * gradient.loss
            smooth = mean / (1 - SMOOTHING ** (update + 1))
            if not math.isfinite(smooth + gradient.norm) or smooth > best + DIVERGED:
                break
            best = min(best, smooth)
            factors.append(factor)
            losses.append(smooth)
            training.step(gradient, factor)
            if progress is not None:
                progress(update + 1, updates)
    training.forget()
    if len(losses) < 2 or min(losses) >= losses[0]:
        raise InputError("The loss fell at no step size, so none can be suggested; look at the data and the start.")
    return RateTest(factors, losses, factors[losses.index(min(losses))] / MARGIN)
