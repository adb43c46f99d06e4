"""Augmentation: other views of a picture, for training (Chen et al. 2020, section 3.1 and appendix A).

Shape suffixes: HW a grid, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def _padded_crop(grid_HW: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    height, width = grid_HW.shape[:2]
    borders = [(side // PAD, side // PAD) for side in (height, width)]
    padded = np.pad(grid_HW, [*borders, *[(0, 0)] * (grid_HW.ndim - 2)], mode="reflect")
    top, left = (int(rng.integers(2 * before, endpoint=True)) for before, _ in borders)
    return padded[top : top + height, left : left + width]
