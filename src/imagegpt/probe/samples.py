"""Features with labels: checked, split by class, and standardised as they are read.

Shape suffixes: N pictures, D width of the features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError
from imagegpt.metrics import Index, check_features, check_labels, chunks

if TYPE_CHECKING:
    import torch

KEPT = 2 << 30  # bytes of standardised features that are held; more are read again on every pass


class Split(NamedTuple):
    """Rows to fit on, and rows that are held out to judge the fit; both ascending."""

    fit: Index
    held: Index


def check_training(x_ND: NDArray[Any], y_N: NDArray[Any], classes: int) -> tuple[NDArray[Any], Index]:
    """Features and labels that something can be learnt from.

    Raises:
        InputError: what `check_features` and `check_labels` refuse, or fewer than two classes in the labels.
    """
    x_ND = check_features(x_ND)
    y_N = check_labels(y_N, len(x_ND), classes)
    if (y_N == y_N[0]).all():
        raise InputError(f"All {len(y_N)} pictures are of class {y_N[0]}; at least two classes are needed.")
    return x_ND, y_N


def read_rows(x_ND: NDArray[Any], rows: slice | Index) -> NDArray[np.float32]:
    """Some rows, as float32 in memory.

    Raises:
        InputError: one of them is NaN or infinite.
    """
    part = np.asarray(x_ND[rows]).astype(np.float32, copy=False)
    if not np.isfinite(part).all():
        raise InputError("The features hold NaN or infinite numbers; compute them again.")
    return part if part.flags.writeable else part.copy()  # torch takes no memory that is only mapped for reading


def moments(x_ND: NDArray[Any], index: Index) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each feature over some rows, in one pass; the latter is 1 where it is constant."""
    # sums of squares lose the variance where the mean is large; around some row of the data they do not
    shift = read_rows(x_ND, index[:1]).astype(np.float64)[0]
    first = second = np.zeros(len(shift))
    for part in chunks(len(index), len(shift)):
        x = read_rows(x_ND, index[part]) - shift
        first, second = first + x.sum(0), second + np.square(x).sum(0)
    mean = first / len(index)
    deviation = np.sqrt(np.maximum(second / len(index) - mean**2, 0))
    mean = mean + shift
    # what varies by less than float32 rounds is constant
    constant = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    return mean.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32)


class Rows:
    """Standardised features and labels on a device, all at once where they fit into KEPT, else read as they are used.

    Args:
        x_ND: features of all pictures.
        y_M: labels of the rows that count.
        index: these rows, ascending; the mean and the standard deviation are theirs.
        standardize: else the features are taken as they are.
        device: a torch device.
    """

    def __init__(self, x_ND: NDArray[Any], y_M: Index, index: Index, *, standardize: bool, device: torch.device):
        import torch

        self._x_ND, self._index, self._device = x_ND, index, device
        self.width = x_ND.shape[1]
        if standardize:
            self.mean_D, self.scale_D = moments(x_ND, index)
        else:
            self.mean_D, self.scale_D = np.zeros(self.width, np.float32), np.ones(self.width, np.float32)
        self._mean, self._scale = (torch.from_numpy(a).to(device) for a in (self.mean_D, self.scale_D))
        self.y = torch.from_numpy(y_M).to(device)
        self._kept: torch.Tensor | None = None
        if fits(len(index), self.width):
            self._kept = torch.empty(len(index), self.width, device=device)
            for part in chunks(len(index), self.width):
                self._kept[part] = self._read(index[part])

    def __len__(self) -> int:
        return len(self._index)

    def passes(self, width: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Features and labels, chunk by chunk, in order; `width` of what is computed of a row, if that is more."""
        for part in chunks(len(self), max(self.width, width)):
            yield (self._read(self._index[part]) if self._kept is None else self._kept[part]), self.y[part]

    def batch(self, places: Index) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and labels of some of the rows, by their places."""
        import torch

        chosen = torch.from_numpy(places).to(self._device)
        x = self._read(self._index[places]) if self._kept is None else self._kept[chosen]
        return x, self.y[chosen]

    def _read(self, index: Index) -> torch.Tensor:
        import torch

        x = torch.from_numpy(read_rows(self._x_ND, index)).to(self._device)
        return (x - self._mean) / self._scale


def fits(count: int, width: int) -> bool:
    """Whether `Rows` of this size are held in memory."""
    return 4 * count * width <= KEPT


def hold_out(y_N: Index, part: float, seed: int) -> list[Split]:
    """One stratified split: of each class this part, at least one picture, is held out; a class's only one is not.

    Raises:
        InputError: the part is not between 0 and 1, or no class has two pictures.
    """
    if not 0 < part < 1:
        raise InputError(f"The part that is held out must lie between 0 and 1, not {part}.")
    rng = np.random.default_rng([seed, 1])
    held = np.zeros(len(y_N), bool)
    for members in _members(y_N, rng):
        held[members[: min(max(1, round(part * len(members))), len(members) - 1)]] = True
    if not held.any():
        raise InputError("No class has two pictures, so none can be held out to choose the strength; give a strength.")
    return [Split(np.flatnonzero(~held), np.flatnonzero(held))]


def folds_of(y_N: Index, folds: int, seed: int) -> list[Split]:
    """Stratified cross-validation: each picture is held out once, and each fold has its share of each class.

    Raises:
        InputError: fewer than two folds, or more than a class has pictures.
    """
    least = int(np.bincount(y_N)[np.unique(y_N)].min())
    if not 2 <= folds <= least:
        raise InputError(f"{folds} folds need 2 or more, and as many pictures of each class; one class has {least}.")
    rng = np.random.default_rng([seed, 1])
    fold_N = np.empty(len(y_N), np.int64)
    for members in _members(y_N, rng):
        fold_N[members] = np.arange(len(members)) % folds
    return [Split(np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)) for fold in range(folds)]


def _members(y_N: Index, rng: np.random.Generator) -> Iterator[Index]:
    """The rows of each class, in random order."""
    return (rng.permutation(np.flatnonzero(y_N == label)) for label in np.unique(y_N))
