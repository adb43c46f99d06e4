"""Palettes by k-means, and how good a palette is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.nearest import LEVELS, pack
from imagegpt.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from imagegpt.codec.palette import PaletteCodec

PIXELS = 500_000
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class PixelSample:
    """A uniform sample of the pixels of many pictures, of a fixed size, in one pass (reservoir sampling).

    Args:
        size: pixels to keep.
        seed: of the choice.
    """

    def __init__(self, size: int = PIXELS, seed: int = 0) -> None:
        if size < 1:
            raise InputError(f"The sample must hold at least one pixel, not {size}.")
        self._pixels = np.empty((size, 3), np.uint8)
        self._seen = 0
        self._rng = np.random.default_rng(seed)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Offer the pixels of a picture, (..., 3) uint8."""
        flat = np.asarray(pixels).reshape(-1, 3)
        size = len(self._pixels)
        first = flat[: max(0, size - self._seen)]
        self._pixels[self._seen : self._seen + len(first)] = first
        self._seen += len(first)
        rest = flat[len(first) :]
        # Pixel number n (from 0) takes a random place among n + 1; only places in the sample keep it.
        places = self._rng.integers(0, self._seen + 1 + np.arange(len(rest)))
        kept = places < size
        self._pixels[places[kept]] = rest[kept]
        self._seen += len(rest)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The sample so far, (n, 3)."""
        return self._pixels[: self._seen]


def cluster_colors(flat: NDArray[np.uint8], colors: int, seed: int = 0) -> NDArray[np.float32]:
    """K-means: k-means++ start, Lloyd's iterations, colours sorted from dark to light (then by r, g, b).

    Args:
        flat: (P, 3) uint8 RGB, all of which count.
        colors: K.
        seed: of the start.

    Returns:
        (K, 3) colours in [-1, 1].

    Raises:
        InputError: fewer distinct colours than K, or K is below 1.
        MissingExtra: scikit-learn is missing (extra "probe").
    """
    try:
        from sklearn.cluster import KMeans  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingExtra("Fitting a palette", "scikit-learn", "probe") from error
    # Each distinct colour once, with its count as weight: the same sum of squares from a third of the points.
    packed, counts = np.unique(pack(flat), return_counts=True)
    distinct = len(packed)
    if not 1 <= colors <= distinct:
        raise InputError(f"{colors} colours can't be fitted to {distinct} distinct ones; ask for 1 to {distinct}.")
    points = LEVELS[np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1)]
    # sklearn's inline types call every option a str. It moves empty clusters to the pixels that are farthest off.
    kmeans = KMeans(colors, n_init=1, max_iter=100, random_state=seed)  # pyright: ignore[reportArgumentType]
    centers = kmeans.fit(points, sample_weight=counts).cluster_centers_.astype(np.float32)
    red, green, blue = centers.T
    return centers[np.lexsort((blue, green, red, centers @ LUMA))]


def palette_error(codec: PaletteCodec, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, Any]:
    """What quantising loses on pictures, each (..., 3) uint8.

    Returns:
        `rmse` in levels of 0..255, over all pixels and channels; `psnr` in dB; `pixels`, how many there were.
    """
    total, count = 0.0, 0
    for picture in pictures:
        seen = codec.decode(codec.encode(picture)).astype(np.float32)
        total += float(np.square(seen - picture).sum(dtype=np.float64))
        count += picture.size
    rmse = math.sqrt(total / max(count, 1))
    return {"rmse": rmse, "psnr": 20 * math.log10(255 / rmse) if rmse else math.inf, "pixels": count // 3}
