"""How fast a run is: ids a second, and the part of the machine's peak."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

from imagegpt.engine.accelerators import peak_flops
from imagegpt.engine.cost import training_flops
from imagegpt.spec import ModelSpec
from imagegpt.train.flat import FlatRecipe
from imagegpt.train.processes import Processes


@dataclass(frozen=True)
class Work:
    """What a picture is for a network.

    Args:
        ids: how many it has.
        flops: of its forward and backward; what the model needs, not what checkpointing computes again.
        width: of the network's largest products.
    """

    ids: int
    flops: int
    width: int

    @classmethod
    def of(cls, spec: ModelSpec) -> Work:
        """A picture's work in a transformer."""
        return cls(spec.n_positions, training_flops(spec, 1), spec.n_embd)


class Clock:
    """How fast a run is.

    Args:
        recipe: the batch, and what it is computed in.
        work: of one picture.
        group: the processes.
    """

    def __init__(self, recipe: FlatRecipe, work: Work, group: Processes) -> None:
        self._pictures, self._ids = recipe.optimization.batch, recipe.optimization.batch * work.ids
        self._flops = work.flops * recipe.optimization.batch
        self._recipe, self._work, self._group = recipe, work, group
        self._began, self._step = 0.0, 0.0

    @cached_property
    def _peak(self) -> float:
        """Of all processes; measured where no data sheet has it, by the first of them alone, which asks for rates."""
        options = self._recipe.optimization
        rows = options.batch // self._group.count // options.accumulate * self._work.ids
        one = peak_flops(self._group.device, self._recipe.compute.precision, rows, self._work.width)
        return one * self._group.count

    def start(self) -> None:
        """The next update begins."""
        self._began = time.perf_counter()

    def tick(self) -> float:
        """An update ended: its seconds."""
        now = time.perf_counter()
        taken, self._began = now - self._began, now
        self._step = taken if not self._step else 0.9 * self._step + 0.1 * taken
        return taken

    def rates(self) -> dict[str, float]:
        """ids/s, pictures/s and the part of the machine's peak, of the latest updates."""
        return {
            "ids_per_s": round(self._ids / self._step, 1),
            "pictures_per_s": round(self._pictures / self._step, 2),
            "mfu": round(self._flops / self._step / self._peak, 4),
        }
