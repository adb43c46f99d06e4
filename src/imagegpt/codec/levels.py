"""LevelsCodec: every colour is its own id, so that what reads ids can hand on pixels as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

COLORS = 1 << 24


class LevelsCodec:
    """The 2^24 colours of uint8 RGB as ids: r 65536 + g 256 + b. It loses nothing, and no network draws such ids.

    A codec in training sees its pictures this way, through the same batches as all that learns from ids.

    Example:
        >>> codec = LevelsCodec()
        >>> codec.decode(codec.encode(np.array([[[1, 2, 3]]], np.uint8))).tolist()
        [[[1, 2, 3]]]
    """

    factor = 1
    name = "16,777,216 colours"
    fingerprint = "levels"
    table = None  # it would be 2^24 numbers, each its own place

    def __len__(self) -> int:
        """K, the number of colours."""
        return COLORS

    @property
    def colors(self) -> NDArray[np.float32]:
        """The colour of each id, (2^24, 3) in [-1, 1]: 200 MB."""
        return (self.decode(np.arange(COLORS)) / np.float32(127.5) - 1).astype(np.float32)

    def encode(self, pixels: Any) -> NDArray[np.int64]:
        """(..., 3) uint8 RGB to (...) int64 ids; a ValueError says that it is something else."""
        levels = np.asarray(pixels)
        if levels.dtype != np.uint8 or levels.ndim < 1 or levels.shape[-1] != 3:
            raise ValueError(f"Pixels are uint8 RGB, shape (..., 3), not {levels.dtype} {levels.shape}.")
        red, green, blue = np.moveaxis(levels.astype(np.int64), -1, 0)
        return red << 16 | green << 8 | blue

    def decode(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """(...) ids to (..., 3) uint8 RGB; a ValueError says that one is no colour."""
        values = np.asarray(ids)
        if values.size and values.dtype.kind not in "iu":
            raise ValueError(f"Ids are whole numbers, not {values.dtype}.")
        values = values.astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < COLORS:
            raise ValueError(f"Ids of colours are 0 to {COLORS - 1}, not {values.min()} to {values.max()}.")
        return np.stack([(values >> shift).astype(np.uint8) for shift in (16, 8, 0)], -1)

    def picture(self, cell: int = 16) -> Image.Image:
        """There is none."""
        raise NotImplementedError("Nobody looks at 2^24 colours.")

    def store(self, folder: Path) -> dict[str, Any]:
        """There is nothing to keep: no model has such ids."""
        raise NotImplementedError("No model's ids are all colours.")
