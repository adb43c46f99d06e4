"""A probe study: the curve over the layers, the best probe, and what few labels are worth, into one folder.

`curve.json` has every row and what made them, `curve.png` and `confusion.png` draw them, `probe.safetensors` is the
best layer's linear probe. Rows are kept as they come, so that a study that was stopped goes on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt import __version__
from imagegpt.errors import InputError, MissingExtra
from imagegpt.feature_file import Features
from imagegpt.files import make_folder, write_text
from imagegpt.painting import Progress
from imagegpt.probe.curve_file import CURVE
from imagegpt.probe.linear import Fit, fit_logistic
from imagegpt.probe.low_data import low_data
from imagegpt.probe.plot import plot_confusion, plot_curve
from imagegpt.probe.probe_file import SavedProbe, save_probe
from imagegpt.probe.sweep import Curve, Row, sweep

PIXELS = "pixels"


@dataclass(frozen=True)
class Study:
    """Features with labels, and how they are probed.

    Args:
        train, test: features of the same layers by the same model.
        out: folder for the results.
        model: name of the model, for the probe's file.
        pixels: pixel values of the training and the test pictures, (N, features): the baseline.
        concatenations: layers that are probed side by side too.
        options: of `imagegpt.probe.sweep.sweep`: solver, knn, ridge, seed and so on.

    Raises:
        InputError: no labels, labels that are no classes, or training and test data that don't go together.
    """

    train: Features
    test: Features
    out: Path
    model: str
    pixels: tuple[NDArray[Any], NDArray[Any]] | None = None
    concatenations: Sequence[Sequence[int]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for which, features in (("training", self.train), ("test", self.test)):
            if features.labels is None:
                raise InputError(f"The {which} data has no labels: give class folders, or a table with labels.")
            if features.labels.ndim != 1 or features.labels.dtype.kind not in "iu":
                raise InputError(f"The labels of the {which} data are no classes: a probe needs one whole number each.")
        for fact in ("model", "palette", "pool"):
            ours, theirs = (features.facts.get(fact) for features in (self.train, self.test))
            if ours != theirs:
                raise InputError(f"Training and test features are of another {fact}: {ours} and {theirs}.")
        if self.train.classes != self.test.classes:
            raise InputError(
                f"Training and test data have other classes: {', '.join(self.train.classes)} and "
                f"{', '.join(self.test.classes)}."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where the data has no names."""
        if self.train.classes:
            return self.train.classes
        highest = max(int(features.labels.max()) for features in (self.train, self.test) if features.labels is not None)
        return tuple(map(str, range(highest + 1)))

    def curve(self, progress: Progress | None = None) -> Curve:
        """Probe every layer; write the curve, its pictures and the best probe.

        Args:
            progress: called with (rows done, rows in all).
        """
        make_folder(self.out)
        done = self._done()

        def keep(row: Row, fit: Fit) -> None:
            done[row.name] = row
            self._write(Curve(tuple(done.values())))

        curve = sweep(
            self._features(0),
            self._labels(self.train),
            self._features(1),
            self._labels(self.test),
            len(self.classes),
            concatenations=self.concatenations,
            done=dict(done),
            on_row=keep,
            progress=progress,
            **self.options,
        )
        self._write(curve)
        best = curve.best
        self._save(best, curve.probes.get(best.name) or self._fit(best))
        self._draw(curve)
        return curve

    def few_labels(
        self, layers: Sequence[int], labels_per_class: Sequence[int], folds: int, progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """What probes are worth that see few labels (the paper's low-data protocol); written to low_data.json.

        Args:
            layers: side by side.
            labels_per_class: numbers of training pictures of each class.
            folds: random subsets for each number.
            progress: called with (fits done, fits in all).
        """
        names = ("solver", "seed", "device")
        options = {name: value for name, value in self.options.items() if name in names}
        found = low_data(
            self._side_by_side(0, layers),
            self._labels(self.train),
            self._side_by_side(1, layers),
            self._labels(self.test),
            len(self.classes),
            labels_per_class=labels_per_class,
            folds=folds,
            progress=progress,
            **options,
        )
        rows = [row.as_dict() for row in found]
        record = {**self._facts(), "layers": list(layers), "folds": folds, "rows": rows}
        write_text(self.out / "low_data.json", json.dumps(record, indent=2) + "\n")
        return rows

    def _features(self, side: int) -> dict[int | str, NDArray[Any]]:
        features: dict[int | str, NDArray[Any]] = {**(self.train, self.test)[side].layers}
        return features if self.pixels is None else {PIXELS: self.pixels[side], **features}

    def _side_by_side(self, side: int, layers: Sequence[int]) -> NDArray[Any]:
        features = (self.train, self.test)[side].layers
        return features[layers[0]] if len(layers) == 1 else np.concatenate([features[layer] for layer in layers], 1)

    def _labels(self, features: Features) -> NDArray[np.int64]:
        assert features.labels is not None
        return features.labels

    def _fit(self, row: Row) -> Fit:
        """The probe of a row whose strength is known from an earlier run."""
        names = ("solver", "seed", "device", "standardize", "max_iter")
        options = {name: value for name, value in self.options.items() if name in names}
        x_ND, y_N = self._side_by_side(0, row.layers), self._labels(self.train)
        return fit_logistic(x_ND, y_N, len(self.classes), strength=row.strength, **options)

    def _save(self, row: Row, fit: Fit) -> None:
        facts = self.train.facts
        saved = SavedProbe(
            probe=fit.probe,
            classes=self.classes,
            layers=row.layers,
            pool=facts["pool"],
            model=self.model,
            fingerprint=facts["model"],
            solver=row.solver,
            strength=row.strength,
            accuracy=row.metrics.top1,
            data=str(facts["data"]),
        )
        save_probe(self.out / "probe.safetensors", saved)

    def _draw(self, curve: Curve) -> None:
        try:
            plot_curve(self.out / "curve.png", curve, f"Linear probes of {self.model}")
            plot_confusion(self.out / "confusion.png", curve.best.metrics.confusion_CC, self.classes)
        except MissingExtra as missing:  # the numbers are worth keeping without
            warnings.warn(f"No pictures were drawn. {missing}", stacklevel=3)

    def _facts(self) -> dict[str, Any]:
        """What decides a row."""
        names = ("model", "palette", "precision", "pool")
        facts = {name: self.train.facts.get(name) for name in names}
        sides = {"train": self.train, "test": self.test}
        facts |= {
            side: {"data": of.facts["data"], "count": len(of.numbers), "skipped": of.facts.get("skipped", [])}
            for side, of in sides.items()
        }
        options = {name: value for name, value in self.options.items() if name != "device"}
        return {**facts, "classes": list(self.classes), "options": options, "imagegpt": __version__}

    def _write(self, curve: Curve) -> None:
        record = {**self._facts(), **curve.as_dict()}
        write_text(self.out / CURVE, json.dumps(record, indent=2) + "\n")

    def _done(self) -> dict[str, Row]:
        """The rows of a study with the same facts that lies in the folder already."""
        try:
            found = json.loads((self.out / CURVE).read_text(encoding="utf-8"))
            if any(found.get(name) != value for name, value in json.loads(json.dumps(self._facts())).items()):
                return {}
            return {told["name"]: Row.from_dict(told) for told in found["rows"]}
        except (OSError, ValueError, LookupError, TypeError):
            return {}
