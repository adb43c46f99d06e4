"""A network as a run trains it, and as what it is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagegpt.config import ImageGPTConfig
from imagegpt.model.modeling import ImageGPTPreTrainedModel
from imagegpt.train.objectives import Objective

Arrays = Mapping[str, np.ndarray]


def as_they_are(config: ImageGPTConfig, weights: Arrays) -> tuple[ImageGPTConfig, Arrays]:
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
    """

    model: ImageGPTPreTrainedModel
    objective: Objective
    publish: Callable[[ImageGPTConfig, Arrays], tuple[ImageGPTConfig, Arrays]] = as_they_are
    other: bool = False
    rate: Callable[[str], float] = alike
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config
