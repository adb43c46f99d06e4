"""Labels of DATA as a classifier numbers them, to judge it by.

Shape suffixes: N pictures, C outputs of the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.data.records import Source, label_array
from imagegpt.errors import InputError

TOLD = 10  # names in a message
UNKNOWN = -1  # number of a class that the classifier does not have


def read_targets(source: Source, classes: Sequence[str], problem: str) -> NDArray[Any]:
    """Read and check the labels of all records; no picture is decoded.

    Args:
        source: with labels.
        classes: names of the classifier's outputs, in their order. Where the data has names too these must be among
            them, and labels are renumbered; else labels are the outputs' numbers.
        problem: transformers' name of what the classifier tells.

    Returns:
        (N,) int64 of single classes; (N, C) bool of many labels; (N, C) float64 of a regression.

    Raises:
        InputError: no labels, labels of another kind, NaN, or a class that the classifier does not know.
    """
    labels = read_labels(source)
    if problem == "regression":
        return _as_rows(labels, len(classes), source).astype(np.float64)
    numbers = _numbers_of(source, classes)
    if problem == "single_label_classification":
        return _single(labels, numbers, source, classes)
    rows = _as_rows(labels, len(numbers), source)
    if not np.isin(rows, (0, 1)).all():
        raise InputError(f"{source.path}: a picture's labels must be a row of 0 and 1, as the model tells several.")
    for label in np.flatnonzero(rows.any(0)).tolist():
        _check_known(numbers[label], label, source, classes)
    known = [label for label, number in enumerate(numbers) if number != UNKNOWN]
    truth_NC = np.zeros((len(rows), len(classes)), bool)
    truth_NC[:, [numbers[label] for label in known]] = rows[:, known]
    return truth_NC


def check_labelled(source: Source) -> None:
    """Refuse DATA without labels."""
    if not source.labelled:
        raise InputError(f"{source.path} has no labels: give class folders, or a table with labels (--label-column).")


def read_labels(source: Source) -> NDArray[Any]:
    """The labels of all records as they are, (N,) or (N, n).

    Raises:
        InputError: there are none, or one is NaN, infinite or too large for float32.
    """
    check_labelled(source)
    try:
        labels = label_array([record.label for record in source], range(len(source)))
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None
    finite = np.abs(labels) <= np.finfo(np.float32).max
    if not finite.all():
        number = int(np.argwhere(~finite)[0, 0])
        raise InputError(f"{source.path}: record {number} has the label {labels[number]}; leave it out, or mend it.")
    return labels


def _numbers_of(source: Source, classes: Sequence[str]) -> list[int]:
    """For each class of the data its number in the classifier."""
    known = {name: number for number, name in enumerate(classes)}
    unnamed = all(name in (str(at), f"LABEL_{at}") for at, name in enumerate(classes))
    if unnamed:
        known |= {str(number): number for number in range(len(classes))}
    # Folders 1 and 2 beside classes 0, 1 and 2 are names that are known, of which the numbers are 0 and 1.
    if not source.classes or (unnamed and known.keys().isdisjoint(source.classes)):
        return list(range(len(classes)))
    return [known.get(name, UNKNOWN) for name in source.classes]


def _single(labels: NDArray[Any], numbers: list[int], source: Source, classes: Sequence[str]) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind == "f":
        each = f"{labels.shape[1]} numbers" if labels.ndim == 2 else "no whole number"
        raise InputError(
            f"{source.path}: a label is {each}; the model tells one class, so it must be that class's number."
        )
    for label in np.unique(labels).tolist():
        _check_known(numbers[label] if 0 <= label < len(numbers) else UNKNOWN, label, source, classes)
    return np.array(numbers)[labels]


def _check_known(number: int, label: int, source: Source, classes: Sequence[str]) -> None:
    if number == UNKNOWN:
        name = source.classes[label] if 0 <= label < len(source.classes) else str(label)
        known = ", ".join(classes[:TOLD]) + (", ..." if len(classes) > TOLD else "")
        raise InputError(
            f"{source.path} has pictures of the class {name}, which the model does not know: it knows {known}."
        )


def _as_rows(labels: NDArray[Any], count: int, source: Source) -> NDArray[Any]:
    rows = labels.reshape(len(labels), -1)
    if rows.shape[1] != count:
        raise InputError(f"{source.path}: each label is {rows.shape[1]} numbers; the model tells {count}.")
    return rows
