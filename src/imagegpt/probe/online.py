"""The online probe: how well a network's features tell classes apart while it is still in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imagegpt.data.ids import read_ids
from imagegpt.data.records import Record, Source, label_array
from imagegpt.errors import InputError
from imagegpt.metrics import evaluate
from imagegpt.pipeline import ImageGPT
from imagegpt.probe.linear import fit_logistic

STRENGTH = 1e-3  # always the same, so that accuracies differ by the features alone
Labelled = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class OnlineProbe:
    """A linear probe of one layer, fitted anew to the same pictures each time it is asked.

    Args:
        train: labelled pictures, or ids of the network's codec; some of them fit the probe.
        test: those that it is tested on.
        count: pictures of each, taken evenly from the whole.
        layer: blocks that are run, from 0 to L; default: the middle.
        seed: of the probe.

    Raises:
        InputError: a source without labels.
    """

    train: Source
    test: Source
    count: int
    layer: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for source in (self.train, self.test):
            if not source.labelled:
                raise InputError(f"{source.path} has no labels, which the online probe needs.")

    @cached_property
    def _ids(self) -> dict[str, Labelled]:
        return {}

    def __call__(self, folder: Path) -> dict[str, float]:
        """Accuracy of the probe of a model folder, and its layer."""
        model = ImageGPT.from_pretrained(folder)
        layer = model.spec.n_layer // 2 if self.layer is None else self.layer
        found = {name: self._read(name, source, model) for name, source in (("train", self.train), ("test", self.test))}
        x = {name: model.features_of(ids_BT, [layer])[layer] for name, (ids_BT, _) in found.items()}
        (_, y_train), (_, y_test) = found["train"], found["test"]
        classes = max(len(self.train.classes), int(y_train.max()) + 1, int(y_test.max()) + 1)
        fit = fit_logistic(x["train"], y_train, classes, strength=STRENGTH, seed=self.seed)
        accuracy = evaluate(fit.probe.scores(x["test"]), y_test, classes).top1
        return {"accuracy": accuracy, "layer": layer}

    def _read(self, name: str, source: Source, model: ImageGPT) -> Labelled:
        if name not in self._ids:
            batches = list(read_ids(spread(source, self.count), model.codec, model.framing, "skip"))
            numbers = np.concatenate([batch.numbers for batch in batches])
            if not len(numbers):
                raise InputError(f"{source.path} holds no picture that the online probe can read.")
            labels = label_array([label for batch in batches for label in batch.labels or ()], numbers)
            self._ids[name] = np.concatenate([batch.ids_BT for batch in batches]), labels
        return self._ids[name]


def spread(source: Source, count: int) -> Source:
    """So many of a source's records, taken evenly: of folders by class the first ones would be of one class."""
    if count >= len(source):
        return source
    numbers = [number * len(source) // count for number in range(count)]

    def records(start: int, stop: int) -> Iterator[Record]:
        first, last = numbers[start], numbers[stop - 1]
        taken = set(numbers[start:stop])
        return compress(source.part(first, last + 1), (number in taken for number in range(first, last + 1)))

    return replace(source, length=count, records=records, ids_NT=None)
