"""What pictures are labelled with: checked before anything is learnt, and as the numbers that a loss takes.

Shape suffixes: N pictures, C outputs of the classifier.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.data import targets
from imagegpt.data.records import Label, Source, label_array
from imagegpt.errors import InputError
from imagegpt.train.finetune_recipe import Problem

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = {"single": SINGLE, "multi": MULTI, "regression": REGRESSION}
MOST = 10**6  # classes without names: a higher number is no class's
TOLD = 10  # names in a message


@dataclass(frozen=True)
class Labels:
    """What the classifier shall tell.

    Args:
        problem: transformers' name of it.
        classes: names of the outputs.
        counts_C: training pictures of each class; of regression none.
        pictures: training pictures.
    """

    problem: str
    classes: tuple[str, ...]
    counts_C: NDArray[np.int64] = field(compare=False)
    pictures: int

    def targets(self, labels: Sequence[Label | None], numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Labels of training records as a loss takes them: (B,) int64 of single classes, else (B, C) float32.

        Args:
            labels: of the records.
            numbers: of the records, for messages.
        """
        return self.as_targets(label_array(labels, numbers))

    def as_targets(self, labels: NDArray[Any]) -> NDArray[Any]:
        """The same of an array."""
        return labels.astype(np.int64) if self.problem == SINGLE else labels.reshape(len(labels), -1).astype(np.float32)

    def weights(self, asked: str | None) -> NDArray[np.float32] | None:
        """Weights of the classes; their mean over the training pictures is 1.

        Of several classes a picture it is the weight of the positive ones.

        Args:
            asked: "balanced", or a number for each class with commas between them; `None` for none.

        Raises:
            InputError: another number of weights, or one that is not positive.
        """
        if asked is None:
            return None
        if self.problem == REGRESSION:
            raise InputError("--class-weights are of classes, and the labels are numbers: leave it out.")
        if asked == "balanced":
            counts_C = np.maximum(self.counts_C, 1)
            if self.problem == MULTI:
                return ((self.pictures - counts_C).clip(1) / counts_C).astype(np.float32)
            weights_C = 1 / counts_C
        else:
            weights_C = _numbers(asked, len(self.classes))
        if self.problem == MULTI:
            return weights_C.astype(np.float32)
        return (weights_C * self.counts_C.sum() / (weights_C * self.counts_C).sum()).astype(np.float32)


def read_labels(train: Source, validation: Source | None, problem: Problem, least: int) -> Labels:
    """Read and check the labels of all records; no picture is decoded.

    Args:
        train: training pictures.
        validation: whose classes must be among the training pictures'.
        problem: what is asked for.
        least: training pictures that every class must have; one without any is told of in a warning.

    Raises:
        InputError: no labels, labels of another kind, or something in them from which nothing can be learnt.
    """
    ours = targets.read_labels(train)
    kind = PROBLEMS.get(problem) or _kind(ours)
    _check_kind(kind, ours, train)
    labels = _single(ours, train, least) if kind == SINGLE else _several(ours, train, kind)
    if validation is not None:
        found = targets.read_targets(validation, labels.classes, kind)
        if kind == MULTI and not found.any():
            raise InputError(f"{validation.path}: no picture has any label, so that nothing can be judged by it.")
    return labels


def _several(ours: NDArray[Any], train: Source, kind: str) -> Labels:
    outputs = 1 if ours.ndim == 1 else ours.shape[1]
    names = train.classes if len(train.classes) == outputs else tuple(str(number) for number in range(outputs))
    counts_C = np.zeros(0, np.int64) if kind == REGRESSION else ours.sum(0).astype(np.int64)
    if (ours == ours[:1]).all():
        raise InputError(f"{train.path}: all pictures have the same label, {ours[0]}; nothing can be learnt of it.")
    return Labels(kind, names, counts_C, len(ours))


def _kind(array: NDArray[Any]) -> str:
    if array.ndim == 2 and np.isin(array, (0, 1)).all():
        return MULTI
    return REGRESSION if array.dtype.kind == "f" else SINGLE


def _check_kind(kind: str, array: NDArray[Any], source: Source) -> None:
    if kind == SINGLE:
        told = "a class must be a whole number of at least 0"
        wrong_N = array < 0 if array.ndim == 1 and array.dtype.kind != "f" else np.ones(len(array), bool)
    elif kind == MULTI:
        told = "several classes a picture are a row of 0 and 1"
        wrong_N = ~np.isin(array, (0, 1)).all(1) if array.ndim == 2 else np.ones(len(array), bool)
    else:
        return
    if wrong_N.any():
        number = int(wrong_N.argmax())
        raise InputError(f"{source.path}: {told}, and record {number} has the label {array[number]}.")


def _single(ours: NDArray[Any], train: Source, least: int) -> Labels:
    if not train.classes and ours.max() >= MOST:
        raise InputError(f"{train.path} has the label {ours.max()}: number the classes from 0 on, or name them.")
    names = train.classes or tuple(str(number) for number in range(int(ours.max()) + 1))
    if ours.max() >= len(names):
        raise InputError(f"{train.path} has the label {ours.max()}, and names of {len(names)} classes.")
    counts_C = np.bincount(ours, minlength=len(names))
    [there] = np.nonzero(counts_C)
    if len(there) == 1:
        raise InputError(
            f"{train.path}: all {len(ours)} pictures are of the class {names[there[0]]!r}; at least two are needed."
        )
    for number in there:
        if counts_C[number] < least:
            raise InputError(
                f"{train.path}: the class {names[number]!r} has too few pictures, {counts_C[number]}; "
                f"each must have {least}: add pictures, leave the class out, or give --least."
            )
    if len(there) < len(names):
        missing = _few([names[number] for number in np.flatnonzero(counts_C == 0)])
        warnings.warn(f"{train.path}: no picture is of the class {missing}, which can't be learnt.", stacklevel=2)
    return Labels(SINGLE, names, counts_C, len(ours))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (", ..." if len(names) > TOLD else "")


def _numbers(text: str, count: int) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise InputError(
            f"--class-weights: give balanced, or numbers with commas between them, not {text!r}."
        ) from None
    if len(numbers) != count or not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise InputError(f"--class-weights: {count} classes need as many numbers above 0, not {text!r}.")
    return numbers
