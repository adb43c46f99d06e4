"""Other views of a picture: drawn, for training (Chen et al. 2020, section 3.1 and appendix A); fixed, for judging.

Shape suffixes: B pictures, HW a grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.codec.pictures import Framing
from imagegpt.errors import InputError

SHORT_SIDE = (256, 384)  # pixels, between which the paper draws a picture's short side ...
CROP = 224  # ... before it cuts a square of these
PAD = 8  # the grid's size over the padding: 4 pixels of 32
NAMED = {"none": (), "cifar": ("pad", "flip"), "imagenet": ("crop",)}
PARTS = ("crop", "pad", "flip")
Views = Literal["none", "flip", "ten"]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew each time a picture is shown.

    Args:
        crop: a part of the picture in the grid's shape, anywhere: the short side of it is 224 / s of the picture's, s
            uniform in 256..384 (the paper's for ImageNet).
        pad: the grid is padded by an eighth of its size, reflecting, and cut out anywhere (the paper's for CIFAR: 4
            pixels of 32).
        flip: every other picture is mirrored.

    Example:
        >>> Augmentation.parse("cifar")
        Augmentation(crop=False, pad=True, flip=True)
    """

    crop: bool = False
    pad: bool = False
    flip: bool = False

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """What a name means: "none", "cifar", "imagenet", or some of crop, pad and flip with commas between them.

        Raises:
            InputError: another name.
        """
        parts = NAMED.get(text, tuple(part.strip() for part in text.split(",")))
        for part in parts:
            if part not in PARTS:
                known = ", ".join((*NAMED, *PARTS))
                raise InputError(f"There is no augmentation {part!r}; known are {known}, several with commas.")
        return cls(**dict.fromkeys(parts, True))

    def __str__(self) -> str:
        """Its parts, as `parse` reads them."""
        return ",".join(part for part in PARTS if getattr(self, part)) or "none"

    @property
    def keeps_grid(self) -> bool:
        """Whether the grid's own numbers are moved and no more, so that ids can be augmented in place of pixels."""
        return not self.crop

    def apply(self, image: Image.Image, framing: Framing, rng: np.random.Generator) -> NDArray[np.uint8]:
        """One view of an RGB picture, (height, width, 3) uint8.

        Args:
            image: of any size.
            framing: the grid, and how a picture comes onto it where it is not cropped.
            rng: decides; the same generator gives the same view.
        """
        if not self.crop:
            return self.move(framing.apply(image), rng)
        box = self._box(image.size, framing, rng)
        return self.move(np.asarray(image.resize((framing.width, framing.height), framing.resample, box=box)), rng)

    def move(self, grid_HW: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Pad, cut and mirror a grid of pixels (H, W, C) or of ids (H, W); shape and dtype stay."""
        if self.pad:
            grid_HW = _padded_crop(grid_HW, rng)
        if self.flip and rng.random() < 0.5:
            grid_HW = grid_HW[:, ::-1]
        return grid_HW

    def _box(self, size: tuple[int, int], framing: Framing, rng: np.random.Generator) -> Box:
        width, height = size
        part = CROP / rng.integers(SHORT_SIDE[0], SHORT_SIDE[1], endpoint=True)
        scale = part * min(width / framing.width, height / framing.height)
        left, top = rng.random(2) * (width - scale * framing.width, height - scale * framing.height)
        return (left, top, min(left + scale * framing.width, width), min(top + scale * framing.height, height))


def check_views(views: str) -> None:
    """Refuse what are no fixed views."""
    if views not in get_args(Views):
        raise InputError(f"views must be one of {', '.join(get_args(Views))}, not {views!r}.")


def fixed_views(grids_BHW: NDArray[Any], views: Views) -> list[NDArray[Any]]:
    """The same views of every grid, of pixels or of ids, for predictions that are averaged over them.

    Args:
        grids_BHW: (B, H, W) ids, or (B, H, W, C) pixels.
        views: "none" is the grid itself; "flip" it and its mirror image; "ten" five cuts of the grid padded by an
            eighth, reflecting: the middle, which is the grid itself, and the corners, each with its mirror image.

    Returns:
        Arrays of the shape that was given, the grid itself first.

    Example:
        >>> [view.tolist() for view in fixed_views(np.array([[[1, 2]]]), "flip")]
        [[[[1, 2]]], [[[2, 1]]]]
    """
    check_views(views)
    cuts = [grids_BHW]
    if views == "ten":
        (height, width), (high, wide) = grids_BHW.shape[1:3], _borders(grids_BHW.shape[1:3])
        padded = _padded(grids_BHW, 1)
        corners = [(top, left) for top in (0, 2 * high) for left in (0, 2 * wide)]
        cuts += [padded[:, top : top + height, left : left + width] for top, left in corners]
    return cuts if views == "none" else [view for cut in cuts for view in (cut, cut[:, :, ::-1])]


def _padded_crop(grid_HW: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    height, width = grid_HW.shape[:2]
    top, left = (int(rng.integers(2 * before, endpoint=True)) for before in _borders(grid_HW.shape[:2]))
    return _padded(grid_HW)[top : top + height, left : left + width]


def _padded(grid: NDArray[Any], before: int = 0) -> NDArray[Any]:
    """A grid with its border around it; its sides are the two axes after the first `before`."""
    borders = [(border, border) for border in _borders(grid.shape[before : before + 2])]
    return np.pad(grid, [*[(0, 0)] * before, *borders, *[(0, 0)] * (grid.ndim - before - 2)], mode="reflect")


def _borders(sides: tuple[int, ...]) -> list[int]:
    return [side // PAD for side in sides]
