"""The k nearest neighbours, and as a classifier, which has nothing to fit (Wu et al. 2018, section 3.4).

Shape suffixes: N training pictures, M pictures to classify, D width of the features, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.backends import torch_device
from imagegpt.errors import InputError
from imagegpt.metrics import check_features, chunks
from imagegpt.probe.samples import check_training, read_rows

if TYPE_CHECKING:
    import torch

BLOCK = 8192  # training pictures that are compared at once


def nearest(
    x_MD: NDArray[Any], x_ND: NDArray[Any], k: int, device: str | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k pictures that are most like each of others, by the cosine of their features.

    The search is exact; what is compared at once is bounded, so that both sets may lie on the disk.

    Args:
        x_MD: features of the pictures whose neighbours are wanted.
        x_ND: features of those among which these are.
        k: neighbours; all N where there are fewer.
        device: "cpu", "cuda", "mps", ...; default: the first of cuda, mps, cpu that is there.

    Returns:
        Cosines and row numbers in `x_ND`, (M, K), the nearest first. A picture that is in both sets is its own nearest.

    Raises:
        InputError: features or a number that can't be used.

    Example:
        >>> cosine, index = nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 0.1], [1.0, 1.0]]), k=2)
        >>> index.tolist(), cosine.round(2).tolist() == [[np.float32(1.0), np.float32(0.71)]]
        ([[1, 2]], True)
    """
    x_MD, x_ND = check_features(x_MD), check_features(x_ND)
    _check_same_width(x_MD, x_ND)
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}.")
    shape = (len(x_MD), min(k, len(x_ND)))
    cosines_MK, indices_MK = np.empty(shape, np.float32), np.empty(shape, np.int64)
    for part, cosine_MK, index_MK in _in_parts(x_MD, x_ND, k, torch_device(device)):
        cosines_MK[part], indices_MK[part] = cosine_MK.cpu().numpy(), index_MK.cpu().numpy()
    return cosines_MK, indices_MK


def knn_scores(
    x_ND: NDArray[Any],
    y_N: NDArray[Any],
    x_MD: NDArray[Any],
    classes: int,
    *,
    k: int = 200,
    temperature: float = 0.1,
    device: str | None = None,
) -> NDArray[np.float32]:
    """The votes of the k nearest training pictures, each of weight exp(cosine / temperature), as parts of all (M, C).

    The search is exact; what is compared at once is bounded, so that both sets may lie on the disk.

    Args:
        x_ND, y_N: features and labels of the training pictures.
        x_MD: features of the pictures to classify.
        classes: C.
        k: neighbours; all training pictures where there are fewer.
        temperature: the lower, the more the nearest count.
        device: "cpu", "cuda", "mps", ...; default: the first of cuda, mps, cpu that is there.

    Raises:
        InputError: features, labels or numbers that can't be used.
    """
    import torch

    x_ND, y_N = check_training(x_ND, y_N, classes)
    x_MD = check_features(x_MD)
    _check_same_width(x_MD, x_ND)
    if k < 1 or not temperature > 0:
        raise InputError(f"k must be at least 1 and the temperature above 0, not {k} and {temperature}.")
    place = torch_device(device)
    labels_N = torch.from_numpy(y_N).to(place)
    votes_MC = np.empty((len(x_MD), classes), np.float32)
    for part, cosine_MK, index_MK in _in_parts(x_MD, x_ND, k, place, classes):
        # against the nearest, so that no power overflows
        weight_MK = torch.exp((cosine_MK - cosine_MK[:, :1]) / temperature)
        votes = torch.zeros(len(weight_MK), classes, device=place).scatter_add_(1, labels_N[index_MK], weight_MK)
        votes_MC[part] = (votes / weight_MK.sum(1, keepdim=True)).cpu().numpy()
    return votes_MC


def _check_same_width(x_MD: NDArray[Any], x_ND: NDArray[Any]) -> None:
    if x_MD.shape[1] != x_ND.shape[1]:
        raise InputError(f"The training features are {x_ND.shape[1]} wide, the others {x_MD.shape[1]}.")


def _in_parts(
    x_MD: NDArray[Any], x_ND: NDArray[Any], k: int, device: torch.device, width: int = 1
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows of `x_MD` with their cosines and numbers, so many at a time that memory is bounded.

    `width` is of what the caller computes of a row, if that is more.
    """
    for part in chunks(len(x_MD), max(x_MD.shape[1], min(len(x_ND), BLOCK) + k, width)):
        yield part, *_nearest(_directions(x_MD, part, device), x_ND, min(k, len(x_ND)))


def _nearest(x_MD: torch.Tensor, x_ND: NDArray[Any], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and numbers of the k nearest, the nearest first: the best of each block join the best so far."""
    import torch

    best_MK = index_MK = None
    for start in range(0, len(x_ND), BLOCK):
        block = slice(start, min(start + BLOCK, len(x_ND)))
        cosine = x_MD @ _directions(x_ND, block, x_MD.device).T
        cosine, index = cosine.topk(min(k, cosine.shape[1]))
        index += start
        if best_MK is not None and index_MK is not None:
            cosine, index = torch.cat([best_MK, cosine], 1), torch.cat([index_MK, index], 1)
            cosine, places = cosine.topk(min(k, cosine.shape[1]))
            index = index.gather(1, places)
        best_MK, index_MK = cosine, index
    assert best_MK is not None and index_MK is not None
    return best_MK, index_MK


def _directions(x: NDArray[Any], rows: slice, device: torch.device) -> torch.Tensor:
    """Rows at length 1; a row of zeros stays, and is at a right angle to all."""
    import torch

    return torch.nn.functional.normalize(torch.from_numpy(read_rows(x, rows)).to(device), dim=1)
