"""A file of features (`imagegpt.array_file`).

It has one array for each layer, `layer.12` (N, D) or, unpooled, (N, T, D); `numbers` (N,), which record of the data
each row is; and `labels` (N,), where the data has labels.

Shape suffixes: N pictures, T ids, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.array_file import read_arrays
from imagegpt.errors import InputError, reason


@dataclass(frozen=True)
class Features:
    """Features of a data set, as they lie in a file.

    Args:
        layers: layer -> float (N, D), or (N, T, D) where they are not pooled. Mapped from the file where it can be.
        numbers: int64 (N,): which record of the data each row is.
        labels: (N,) where the data has labels.
        facts: what made them: model, layers, pool, data and so on.
    """

    layers: dict[int, NDArray[Any]]
    numbers: NDArray[np.int64]
    labels: NDArray[Any] | None
    facts: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty where the data has none."""
        return tuple(self.facts.get("classes", ()))


def name_of(layer: int) -> str:
    """What a layer's array is called."""
    return f"layer.{layer}"


def read_features(path: str | Path) -> Features:
    """Read a file of features.

    Args:
        path: written by `Extraction` (`imagegpt features`): .safetensors, which stays on the disk until it is used,
            .npz or .parquet.

    Raises:
        InputError: it is missing, damaged, or something else.
    """
    arrays, facts = read_arrays(Path(path), "features")
    try:
        there = [int(name.removeprefix("layer.")) for name in arrays if name.startswith("layer.")]
        layers = {layer: arrays[name_of(layer)] for layer in facts.get("layers", there)}
        return Features(layers, arrays["numbers"], arrays.get("labels"), facts)
    except Exception as error:  # arrays of another kind of file
        raise InputError(f"{path} can't be read as features: {reason(error)}") from None
