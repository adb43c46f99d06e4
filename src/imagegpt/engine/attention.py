"""Where a network looks when it predicts one id: what the numbers mean, whatever finds them.

An autoregressive network predicts id t from SOS and the ids before t, so no later id has a share of its attention. A
bidirectional (BERT) network predicts an id that is hidden from it: SOS stands in its place, and all other ids are seen.

Shape suffixes: L layers, N heads, K colours; h rows and w columns of a picture's ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError


@dataclass(frozen=True, eq=False)
class Attention:
    """Where a network looks when it predicts one id of a picture.

    Heads are numbered as in the model that was trained: one that was cut out (pruned) keeps its place, and has no share
    of anything. Of all others `weights.sum((2, 3)) + start` is 1.

    Args:
        at: (row, column) of the predicted id.
        weights: float32 (L, N, h, w): the share of each id, as the weight of its place in the attention's mean; 0 where
            the network can't have looked: at the predicted id, and with an autoregressive one at all after it.
        start: float32 (L, N): the share of SOS, which is no id of the picture: it comes before the first id, or, with a
            bidirectional network, stands for the hidden one.
        expected: float32 (K,): the network's probability of each id at this place.
    """

    at: tuple[int, int]
    weights: NDArray[np.float32]
    start: NDArray[np.float32]
    expected: NDArray[np.float32]

    @property
    def heads(self) -> NDArray[np.bool_]:
        """Which heads there are, (L, N): False of those that were cut out."""
        return self.weights.sum((2, 3)) + self.start > 0


def read_place(at: Sequence[int], grid: tuple[int, int]) -> tuple[int, int]:
    """A place on the grid of ids as two plain numbers.

    Args:
        at: (row, column), from 0.
        grid: (height, width) of ids.

    Raises:
        InputError: not two whole numbers, or none of the grid's.

    Example:
        >>> read_place((3, 0), (4, 8))
        (3, 0)
    """
    height, width = grid
    try:
        row, column = map(index, at)
    except (TypeError, ValueError):
        raise InputError(f"at must be (row, column), two whole numbers, not {at!r}.") from None
    if not (0 <= row < height and 0 <= column < width):
        raise InputError(
            f"at must be a row of 0 to {height - 1} and a column of 0 to {width - 1}, not {row}, {column}."
        )
    return row, column
