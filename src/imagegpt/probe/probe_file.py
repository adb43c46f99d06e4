"""A linear probe on disk: one safetensors file with the weights and, as its metadata, all that they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import __version__
from imagegpt.errors import InputError
from imagegpt.files import write_whole
from imagegpt.probe.linear import LinearProbe
from imagegpt.tensors import map_tensors, read_metadata, write_tensors

FORMAT = 1
KEY = "imagegpt.probe"
NAMES = {"mean": "mean_D", "scale": "scale_D", "weight": "weight_CD", "bias": "bias_C"}


@dataclass(frozen=True)
class SavedProbe:
    """A linear probe, and what it reads and tells.

    Args:
        probe: the classifier.
        classes: names of the classes, by label.
        layers: numbers of the layers whose features it reads, side by side; none for a baseline.
        pool: how a layer's states become features: "mean".
        model: name of the model, as `ImageGPT.from_pretrained` takes it.
        fingerprint: of the model's weights.
        solver, strength: of the fit.
        accuracy: top-1 on the test pictures, if there were any.
        data: what it was fitted to.
        version: of imagegpt.
    """

    probe: LinearProbe
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    pool: str
    model: str
    fingerprint: str
    solver: str
    strength: float
    accuracy: float | None = None
    data: str = ""
    version: str = __version__


def save_probe(path: Path, saved: SavedProbe) -> None:
    """Write a probe, whole or not at all.

    Raises:
        InputError: the names of the classes are not as many as the probe has, or the file can't be written.
    """
    if len(saved.classes) != len(saved.probe.bias_C):
        raise InputError(f"{len(saved.classes)} names don't fit {len(saved.probe.bias_C)} classes.")
    tensors = {name: getattr(saved.probe, field) for name, field in NAMES.items()}
    entries = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    told = {name: value for name, value in vars(saved).items() if name != "probe"}
    metadata = {KEY: json.dumps({"format": FORMAT, **told}, ensure_ascii=False)}
    write_whole(Path(path), lambda temporary: write_tensors(temporary, entries, lambda name: [tensors[name]], metadata))


def load_probe(path: Path) -> SavedProbe:
    """Read a probe.

    Raises:
        InputError: there is no such file, or it is damaged, or no probe that this version knows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no probe {path}.")
    told = _told(path)  # before the tensors: other files have some of other types
    tensors = map_tensors(path)
    if set(tensors) != set(NAMES):
        raise InputError(f"{path} is no probe: it has the tensors {', '.join(sorted(tensors)) or 'none'}.")
    arrays = {name: np.array(tensors[name]) for name in NAMES}
    _check_shapes(path, arrays, len(told["classes"]))
    probe = LinearProbe(**{NAMES[name]: array for name, array in arrays.items()})
    values = {**told, "classes": tuple(told["classes"]), "layers": tuple(told["layers"])}
    return SavedProbe(probe, **values)


def _told(path: Path) -> dict[str, Any]:
    """The metadata, each of its values of the type that it must have."""
    try:
        told = dict(json.loads(read_metadata(path)[KEY]))
    except (LookupError, TypeError, JSONDecodeError):
        raise InputError(f"{path} is no probe: its metadata does not say that it is one.") from None
    if told.get("format") != FORMAT:
        raise InputError(f"{path} is a probe of another format than imagegpt {__version__} knows.")
    for name, known in TYPES.items():
        if name not in told or not known(told[name]):
            raise InputError(f"{path} is damaged: its {name} is {told.get(name)!r}.")
    return {name: told[name] for name in TYPES}


def _check_shapes(path: Path, arrays: dict[str, NDArray[np.float32]], classes: int) -> None:
    width = arrays["mean"].size
    shapes = {"mean": (width,), "scale": (width,), "weight": (classes, width), "bias": (classes,)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise InputError(f"{path} is damaged: {name} is of shape {arrays[name].shape}, not {shape}.")
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{path} is damaged: {name} is not finite.")
    if not (arrays["scale"] > 0).all():
        raise InputError(f"{path} is damaged: a scale is not positive.")


def _all(kind: type) -> Any:
    return lambda values: isinstance(values, list) and all(type(value) is kind for value in values)


def _one(*kinds: type) -> Any:
    return lambda value: type(value) in kinds


TYPES = {
    "classes": _all(str),
    "layers": _all(int),
    "pool": _one(str),
    "model": _one(str),
    "fingerprint": _one(str),
    "solver": _one(str),
    "strength": _one(float, int),
    "accuracy": _one(float, int, type(None)),
    "data": _one(str),
    "version": _one(str),
}
