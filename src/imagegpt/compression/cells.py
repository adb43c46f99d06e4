"""What an id says of the pixel it stands for: only levels that the codec gives this id remain.

It holds where pixels are coded one by one and a picture has the framed pictures' own size, so that each id is one
pixel's. The colours with one id are a cell of the cube of colours: red must leave some green and blue in the cell,
green some blue, and blue must be in it.

Shape suffixes: N pixels, K ids, R, G, B the 256 levels of a channel.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.codec import Codec

LEVELS = 256
MOST_COLORS = 1 << 10  # 64 KiB for each; with more ids only the last channel is narrowed
GREY = 0x010101


class Cells:
    """The cells of a codec.

    Args:
        table: the id of every colour; see `Codec.table`.
        colors: K.
    """

    def __init__(self, table: NDArray[np.integer], colors: int) -> None:
        self._table = table
        self._green_KRG: NDArray[np.bool_] | None = None
        self._red_KR: NDArray[np.bool_] | None = None
        if colors <= MOST_COLORS:
            self._green_KRG = _greens(table, colors)
            self._red_KR = np.asarray(self._green_KRG.any(2))

    def levels(self, ids_N: NDArray[np.int64], before: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Which levels the next channel of RGB pixels may have: (N, 256).

        Args:
            ids_N: the pixels' ids.
            before: (N,) levels of their channels so far: none, red, or red and green.
        """
        if len(before) == 2:
            first_N = (before[0] << 16) | (before[1] << 8)
            return np.equal(self._table[first_N[:, None] + np.arange(LEVELS)], ids_N[:, None])
        if self._green_KRG is None or self._red_KR is None:
            return np.ones((len(ids_N), LEVELS), bool)
        return self._green_KRG[ids_N, before[0]] if before else self._red_KR[ids_N]

    def greys(self, ids_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which levels grey pixels may have: (N, 256)."""
        return np.equal(self._table[np.arange(LEVELS) * GREY], ids_N[:, None])


@lru_cache(maxsize=2)
def cells_of(codec: Codec) -> Cells | None:
    """The cells of a codec, kept for the next batch; `None` where ids stand for more than a pixel."""
    return None if codec.table is None else Cells(codec.table, len(codec))


def _greens(table: NDArray[np.integer], colors: int) -> NDArray[np.bool_]:
    """For each colour and red, which greens have some blue in the cell: (K, 256, 256)."""
    green_KRG = np.zeros((colors, LEVELS, LEVELS), bool)
    greens = np.repeat(np.arange(LEVELS), LEVELS)
    for red, ids in enumerate(table.reshape(LEVELS, LEVELS * LEVELS)):
        green_KRG[ids, red, greens] = True
    return green_KRG
