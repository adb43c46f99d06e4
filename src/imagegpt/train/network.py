"""A network as a run trains it, and as what it is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.modeling_utils import PreTrainedModel

from imagegpt.train.clock import Work
from imagegpt.train.objectives import Objective

Arrays = Mapping[str, np.ndarray]


def as_they_are(config: Any, weights: Arrays) -> tuple[Any, Arrays]:
    """What `Network.publish` is where a run's weights are those of its model."""
    return config, weights


def alike(name: str) -> float:
    """What `Network.rate` is where all weights have the same step size."""
    return 1.0


@dataclass(frozen=True)
class Network:
    """A new network with what a run must know of it.

    Args:
        model: its configuration's `architectures` names the class that opens its files.
        objective: what is learnt.
        publish: makes configuration and weights of a model folder of the run's own, float32 arrays by name.
        other: whether they are others: then checkpoints keep the run's own too.
        rate: factor of the step size, by a parameter's name.
        notes: sentences on how it began, for the log.
        store: keeps its codec in a model folder and gives the entries that say so, as `Codec.store` does; default: that
            of the data.
        counted: what a picture is for it; default: what its configuration's numbers mean.
    """

    model: PreTrainedModel
    objective: Objective
    publish: Callable[[Any, Arrays], tuple[Any, Arrays]] = as_they_are
    other: bool = False
    rate: Callable[[str], float] = alike
    notes: tuple[str, ...] = ()
    store: Callable[[Path], dict[str, Any]] | None = None
    counted: Work | None = None

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def work(self) -> Work:
        """What a picture is for it."""
        return self.counted or Work.of(self.config.spec)
