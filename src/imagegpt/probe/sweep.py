"""The accuracy of every layer, which is best in the middle of the model (Chen et al. 2020)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.metrics import Metrics, check_labels, evaluate
from imagegpt.painting import Progress
from imagegpt.probe.linear import Fit, fit_logistic
from imagegpt.probe.neighbours import knn_scores
from imagegpt.probe.ridge import fit_ridge

Name = int | str
Features = Mapping[Name, NDArray[Any]]
JOIN = "+"
SHARED = ("held_out", "folds", "seed", "device")  # options that ridge regression has too


@dataclass(frozen=True)
class Row:
    """What one layer knows.

    Args:
        name: "5"; "4+5+6" for layers side by side; the name of a baseline, such as "pixels".
        layers: numbers of the layers; none for a baseline.
        solver, strength, held_out, converged: of the linear probe; see `imagegpt.probe.linear.Fit`.
        metrics: of the linear probe on the test pictures.
        knn: top-1 of the nearest neighbours, if asked for.
        ridge, ridge_strength: top-1 of ridge regression and its strength, if asked for.
        seconds: it all took.
    """

    name: str
    layers: tuple[int, ...]
    solver: str
    strength: float
    held_out: dict[float, float]
    converged: bool
    metrics: Metrics
    knn: float | None = None
    ridge: float | None = None
    ridge_strength: float | None = None
    seconds: float = 0.0

    @property
    def baseline(self) -> bool:
        """Whether this is no layer of the model."""
        return not self.layers

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        held_out = {repr(strength): accuracy for strength, accuracy in self.held_out.items()}
        told = {**vars(self), "layers": list(self.layers), "baseline": self.baseline}
        return {**told, "held_out": held_out, "metrics": self.metrics.as_dict()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Row:
        """What `as_dict` told."""
        values = {name: value for name, value in told.items() if name != "baseline"}
        values["layers"] = tuple(told["layers"])
        values["held_out"] = {float(strength): accuracy for strength, accuracy in told["held_out"].items()}
        values["metrics"] = Metrics.from_dict(told["metrics"])
        return cls(**values)


@dataclass(frozen=True)
class Curve:
    """The rows of a sweep, in order.

    Args:
        rows: one for each set of features.
        probes: the linear probes, by row name; of the rows that were fitted now.
    """

    rows: tuple[Row, ...]
    probes: dict[str, Fit] = field(default_factory=dict)

    @property
    def best(self) -> Row:
        """The layer, or the layers side by side, of the highest top-1; the first of equally good ones.

        Raises:
            InputError: there are baselines only.
        """
        layers = [row for row in self.rows if not row.baseline]
        if not layers:
            raise InputError("There is no best layer among baselines.")
        return max(layers, key=lambda row: row.metrics.top1)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        best = None if all(row.baseline for row in self.rows) else self.best.name
        return {"rows": [row.as_dict() for row in self.rows], "best": best}


def sweep(
    train: Features,
    y_train: NDArray[Any],
    test: Features,
    y_test: NDArray[Any],
    classes: int,
    *,
    concatenations: Sequence[Sequence[int]] = (),
    knn: bool = True,
    ridge: bool = True,
    done: Mapping[str, Row] | None = None,
    on_row: Callable[[Row, Fit], object] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Curve:
    """Probe each set of features.

    Args:
        train: features of the training pictures by layer number; a baseline's by its name ("pixels").
        y_train: their labels.
        test, y_test: the same of the test pictures.
        classes: C.
        concatenations: layers that are also probed side by side, such as [[4, 5, 6]]; these are held in memory.
        knn, ridge: measure these too, which have a classifier of their own.
        done: rows by name that are finished already; they are taken as they are.
        on_row: called with each new row, and with its linear probe, as it is finished.
        progress: called with (rows done, rows in all).
        options: of `imagegpt.probe.linear.fit_logistic`; those that the others share are theirs too.

    Raises:
        InputError: features or labels that can't be used, or that lack a layer.
    """
    done = {} if done is None else done
    members = [*((name,) for name in train), *map(tuple, concatenations)]
    for name in (name for names in members for name in names):
        if name not in train or name not in test:
            raise InputError(f"There are no features of {name!r} for both the training and the test pictures.")
    check_labels(y_test, len(y_test), classes)
    rows: list[Row] = []
    probes: dict[str, Fit] = {}
    for names in members:
        label = JOIN.join(map(str, names))
        if label in done:
            rows.append(done[label])
        else:
            x_train, x_test = _side_by_side(train, names), _side_by_side(test, names)
            row, probes[label] = measure(
                names, x_train, y_train, x_test, y_test, classes, knn=knn, ridge=ridge, **options
            )
            rows.append(row)
            if on_row is not None:
                on_row(row, probes[label])
        if progress is not None:
            progress(len(rows), len(members))
    return Curve(tuple(rows), probes)


def measure(
    names: Sequence[Name],
    x_train: NDArray[Any],
    y_train: NDArray[Any],
    x_test: NDArray[Any],
    y_test: NDArray[Any],
    classes: int,
    *,
    knn: bool = True,
    ridge: bool = True,
    **options: Any,
) -> tuple[Row, Fit]:
    """One row of a sweep, and its linear probe; `names` are of the layers whose features these are. See `sweep`."""
    began = time.perf_counter()
    fit = fit_logistic(x_train, y_train, classes, **options)
    metrics = evaluate(fit.probe.scores(x_test), y_test, classes)
    shared = {name: value for name, value in options.items() if name in SHARED}
    near = by_ridge = None
    if knn:
        votes = knn_scores(x_train, y_train, x_test, classes, device=options.get("device"))
        near = evaluate(votes, y_test, classes).top1
    if ridge:
        by_ridge = fit_ridge(x_train, y_train, classes, **shared)
    row = Row(
        name=JOIN.join(map(str, names)),
        layers=tuple(name for name in names if isinstance(name, int)),
        solver=fit.solver,
        strength=fit.strength,
        held_out=fit.held_out,
        converged=fit.converged,
        metrics=metrics,
        knn=near,
        ridge=None if by_ridge is None else evaluate(by_ridge.probe.scores(x_test), y_test, classes).top1,
        ridge_strength=None if by_ridge is None else by_ridge.strength,
        seconds=time.perf_counter() - began,
    )
    return row, fit


def _side_by_side(features: Features, names: Sequence[Name]) -> NDArray[Any]:
    if len(names) == 1:
        return features[names[0]]
    return np.concatenate([np.asarray(features[name], np.float32) for name in names], 1)
