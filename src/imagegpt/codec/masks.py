"""Masks: which pixels of framed pictures are painted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.codec.pictures import Framing, Picture, read_picture
from imagegpt.errors import InputError


def read_masks(masks: Any, pictures: list[Image.Image], framing: Framing) -> NDArray[np.bool_]:
    """Masks of framed pictures: (pictures, height, width), True where a pixel is painted.

    Args:
        masks: one for all pictures, or a list or an array of one for each: white (True) is painted, black (False) is
            kept. Of its picture's size, and then cropped and shrunk as the picture is (a pixel is painted if half of it
            is), or of the framed picture's.
        pictures: the pictures, as read.
        framing: what becomes of them.

    Raises:
        InputError: a mask that can't be read, of another size, or that paints nothing; or another number of masks.
    """
    given: list[Picture] = list(masks) if _are_several(masks, pictures, framing) else [masks] * len(pictures)
    if len(given) != len(pictures):
        raise InputError(f"There are {len(pictures)} pictures and {len(given)} masks; give one, or one for each.")
    pairs = zip(given, pictures, strict=True)
    return np.stack([_on_grid(read_picture(mask), picture, framing) for mask, picture in pairs])


def _are_several(masks: Any, pictures: list[Image.Image], framing: Framing) -> bool:
    """Whether these are masks of each picture; three in an array of their own would look like one in colour."""
    if isinstance(masks, (list, tuple)):
        return True
    count, *shape = tuple(getattr(masks, "shape", ())) or (0,)
    sizes = {framing.size, *((picture.height, picture.width) for picture in pictures)}
    return count == len(pictures) and (len(shape) == 3 or tuple(shape) in sizes)


def whole_blocks(painted_BHW: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Which blocks of `factor` x `factor` pixels are painted anywhere, (B, H / factor, W / factor)."""
    pictures, height, width = painted_BHW.shape
    blocks = painted_BHW.reshape(pictures, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.any((2, 4)))


def _on_grid(mask: Image.Image, picture: Image.Image, framing: Framing) -> NDArray[np.bool_]:
    grid = (framing.width, framing.height)
    if mask.size not in (picture.size, grid):
        raise InputError(
            f"The mask is {mask.width} x {mask.height}; it must be of its picture's size, {picture.width} x "
            f"{picture.height}, or of the grid's, {grid[0]} x {grid[1]}."
        )
    if mask.size != grid:
        if framing.crop == "random":
            raise InputError('A mask does not follow crop="random"; give one of the grid\'s size.')
        mask = Image.fromarray(replace(framing, resample=Image.Resampling.BOX).apply(mask))
    painted = np.asarray(mask.convert("L")) >= 128
    if not painted.any():
        raise InputError("The mask paints nothing: white (or True) is painted, black (or False) is kept.")
    return painted
