"""What every codec is: pixels to ids and back. Who uses one does not ask which it is.

Shape suffixes: K ids, HW pixels, hw the grid of ids.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from imagegpt.codec.augment import Augmentation
from imagegpt.codec.pictures import Crop, Framing
from imagegpt.errors import InputError

CHANNELS = 3


class Codec(Protocol):
    """The rules between uint8 RGB pixels and ids 0..K-1.

    Attributes:
        factor: pixels of an id along each side. Where it is 1 each pixel is coded by itself.
    """

    factor: int

    def __len__(self) -> int:
        """K, how many ids there are."""
        ...

    @property
    def name(self) -> str:
        """What results call it: bits/dim can't be compared between codecs."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hex digest of all that decides: what data sets and features record of their codec."""
        ...

    @property
    def colors(self) -> NDArray[np.float32]:
        """The colour that each id stands for, on average, (K, 3) in [-1, 1]."""
        ...

    @property
    def table(self) -> NDArray[np.integer] | None:
        """The id of every uint8 colour, (2^24,), where each pixel is coded by itself; else there is none."""
        ...

    def encode(self, pixels: Any) -> Any:
        """(..., H, W, 3) RGB to (..., h, w) int64 ids, where H = h * factor: uint8, or floats in [-1, 1].

        Arrays give arrays, tensors give tensors on their device.

        Raises:
            ValueError: another dtype or shape.
        """
        ...

    def decode(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """(..., h, w) ids to (..., H, W, 3) uint8 RGB.

        Raises:
            ValueError: an id that there is not, or no whole numbers.
        """
        ...

    def picture(self, cell: int = 16) -> Image.Image:
        """All ids in rows, from 0 at the top left, each as large as `cell` pixels."""
        ...

    def store(self, folder: Path) -> dict[str, Any]:
        """Keep it in a folder, which is there.

        Returns:
            The JSON entries by which `imagegpt.codec.stored.read_codec` finds it there again.
        """
        ...


def grid_of(codec: Codec, framing: Framing) -> tuple[int, int]:
    """The grid `(height, width)` of ids that a codec makes of framed pictures.

    Raises:
        InputError: the framing's sides are no multiples of the codec's factor.

    Example:
        >>> from imagegpt.codec.palette import PaletteCodec
        >>> grid_of(PaletteCodec([[-1, -1, -1], [1, 1, 1]]), Framing(32, 48))
        (32, 48)
    """
    sides = framing.height, framing.width
    if any(side % codec.factor for side in sides):
        raise InputError(
            f"Pictures of {framing.height} x {framing.width} can't be divided into the codec's blocks of "
            f"{codec.factor} x {codec.factor} pixels."
        )
    return framing.height // codec.factor, framing.width // codec.factor


def framing_for(codec: Codec, grid: tuple[int, int], crop: Crop = "none") -> Framing:
    """The framing of pictures that a codec turns into a grid `(height, width)` of ids."""
    return Framing(grid[0] * codec.factor, grid[1] * codec.factor, crop)


def dims_of(codec: Codec) -> int:
    """Numbers of a picture that an id stands for: what bits/dim divide by."""
    return CHANNELS * codec.factor**2


def moves_ids(codec: Codec, augmentation: Augmentation) -> bool:
    """Whether ids can be augmented in the place of pixels: these are coded one by one, or nothing is drawn at all."""
    return augmentation.keeps_grid and (codec.factor == 1 or augmentation == Augmentation())


def in_rows(blocks_Kff: NDArray[np.uint8], cell: int) -> Image.Image:
    """A picture of the pixels (K, f, f, 3) of all ids in rows, as square as it gets, each about `cell` pixels wide."""
    ids, factor = blocks_Kff.shape[:2]
    columns, zoom = math.ceil(math.sqrt(ids)), max(1, cell // factor)
    rows = math.ceil(ids / columns)
    grid = np.full((rows * columns, factor, factor, 3), 255, np.uint8)
    grid[:ids] = blocks_Kff
    sheet = grid.reshape(rows, columns, factor, factor, 3).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * factor, columns * factor, 3)
    return Image.fromarray(sheet.repeat(zoom, 0).repeat(zoom, 1))
