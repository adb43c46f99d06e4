"""Features as points of a plane: by their directions of greatest variance, and by who is near to whom (t-SNE).

Shape suffixes: N pictures, D width of the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError, MissingExtra, check_count
from imagegpt.metrics import check_features
from imagegpt.probe.samples import read_rows

PERPLEXITY = 30.0  # about how many neighbours count; of fewer pictures a third
SAME = 1e-6  # directions that differ by no more are one: float32 rounds by about as much
START = 1e-4  # deviation of the first positions of t-SNE, along the direction of greatest variance


def principal_plane(x_ND: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Features in their two directions of greatest variance (principal components).

    Each direction points to where its largest entry is positive, so the same features give the same picture.

    Args:
        x_ND: features.

    Returns:
        Positions (N, 2) around 0, and the part of all variance that lies in each direction (2,), the greater first;
        where features have one direction or none, the others are 0.

    Raises:
        InputError: features that can't be used.

    Example:
        >>> xy, explained = principal_plane(np.array([[0, 0, 1], [0, 1, 1], [0, 5, 1]]))
        >>> xy[:, 0].round(3).tolist(), explained.round(3).tolist()
        ([-2.0, -1.0, 3.0], [1.0, 0.0])
    """
    x_ND = read_rows(check_features(x_ND), slice(None)).astype(np.float64)
    # Around a picture first: of equal pictures nothing is left, where the mean would leave what it rounds.
    x_ND = x_ND - x_ND[0]
    x_ND = x_ND - x_ND.mean(0)
    left_NR, lengths_R, right_RD = np.linalg.svd(x_ND, full_matrices=False)
    xy_N2, explained_2 = np.zeros((len(x_ND), 2), np.float32), np.zeros(2)
    total = np.square(lengths_R).sum()
    if not total:
        return xy_N2, explained_2
    for axis in range(min(2, len(lengths_R))):
        sign = np.sign(right_RD[axis, np.abs(right_RD[axis]).argmax()])
        xy_N2[:, axis] = sign * lengths_R[axis] * left_NR[:, axis]
        explained_2[axis] = np.square(lengths_R[axis]) / total
    return xy_N2, explained_2


def neighbour_plane(x_ND: NDArray[Any], seed: int = 0) -> NDArray[np.float32]:
    """Features so that near ones stay near (t-SNE: van der Maaten and Hinton 2008); far distances mean nothing.

    Near is what `imagegpt.probe.neighbours.nearest` means by it: features of about the same direction.

    Args:
        x_ND: features of at least three pictures.
        seed: of the random numbers.

    Returns:
        Positions (N, 2); all 0 where all features have one direction.

    Raises:
        InputError: features that can't be used, or too few.
        MissingExtra: scikit-learn is missing (extra "probe").
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtra("A plane of neighbours", "scikit-learn", "probe") from error
    check_count("seed", seed, 0)
    x_ND = check_features(x_ND)
    if len(x_ND) < 3:
        raise InputError(f"A plane of neighbours needs at least 3 pictures, not {len(x_ND)}.")
    x_ND = read_rows(x_ND, slice(None))
    lengths_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    x_ND = x_ND / np.where(lengths_N1, lengths_N1, 1)
    if np.ptp(x_ND, axis=0).max() <= SAME:
        return np.zeros((len(x_ND), 2), np.float32)
    # As scikit-learn's own start, which can't be where features are 1 wide.
    xy_N2, _ = principal_plane(x_ND)
    start_N2 = START * xy_N2 / xy_N2[:, 0].std()
    perplexity = min(PERPLEXITY, max(2.0, (len(x_ND) - 1) / 3))
    return TSNE(perplexity=perplexity, init=start_N2, random_state=seed).fit_transform(x_ND).astype(np.float32)
