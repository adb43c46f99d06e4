"""PaletteCodec: colours <-> ids by the nearest of K colours (Chen et al. 2020, section 3.1)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Pixels compared with all K colours at once: the distances of 4,096 pixels to 512 colours are 8 MiB.
CHUNK = 4096
# From here on it pays to look every distinct colour up once: 2^24 flags and a table.
BULK = 1 << 17
DEFAULT_FIT_PIXELS = 500_000


class PaletteCodec:
    """K colours, and the rules between uint8 RGB pixels and ids.

    Args:
        clusters: (K, 3) colours in [-1, 1], as in HF's `clusters` and OpenAI's `kmeans_centers.npy`.

    Raises:
        ValueError: not (K, 3), not finite, or no colour at all.

    Example:
        >>> codec = PaletteCodec([[-1, -1, -1], [1, 1, 1]])
        >>> codec.encode(np.array([[0, 0, 0], [200, 200, 200]], np.uint8))
        array([0, 1])
        >>> codec.decode([1, 0])
        array([[255, 255, 255],
               [  0,   0,   0]], dtype=uint8)
    """

    def __init__(self, clusters: ArrayLike) -> None:
        colors = np.ascontiguousarray(clusters, dtype=np.float32)
        if colors.ndim != 2 or colors.shape[1] != 3 or not len(colors):
            raise ValueError(f"A palette is an array of K colours, shape (K, 3), not {colors.shape}.")
        if not np.isfinite(colors).all():
            raise ValueError("The palette holds a colour that is not finite.")
        self.clusters: NDArray[np.float32] = colors
        # The paper's decoding, rint(127.5 (c + 1)).
        self._rgb = np.rint(127.5 * (colors + 1)).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        """K, the number of colours."""
        return len(self.clusters)

    @property
    def fingerprint(self) -> str:
        """A hex digest of the colours: what data sets and features record of their codec."""
        return hashlib.sha256(self.clusters.tobytes()).hexdigest()[:16]

    def encode(self, pixels: NDArray[Any]) -> NDArray[np.int64]:
        """The nearest colour of each pixel, by squared L2 in float32; ties go to the lowest id.

        Args:
            pixels: (..., 3) uint8 RGB.

        Returns:
            (...) int64 ids.

        Raises:
            ValueError: not uint8, or the last dimension is not 3.
        """
        pixels = _check_pixels(pixels)
        flat = pixels.reshape(-1, 3)
        ids = self._encode_distinct(flat) if len(flat) >= BULK else self._nearest(flat)
        return ids.reshape(pixels.shape[:-1])

    def decode(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """The colour of each id: rint(127.5 (c + 1)).

        Args:
            ids: (...) whole numbers, 0..K-1.

        Returns:
            (..., 3) uint8 RGB.

        Raises:
            ValueError: an id that is no colour (the start token K included), or no whole numbers.
        """
        ids = np.asarray(ids)
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"Ids are whole numbers, not {ids.dtype}.")
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            bad = ids[(ids < 0) | (ids >= len(self))].flat[0]
            raise ValueError(f"Id {bad} is no colour of this palette of {len(self)} (ids are 0 to {len(self) - 1}).")
        return self._rgb[ids.astype(np.int64)]

    @classmethod
    def fit(cls, pixels: NDArray[np.uint8], colors: int = 512, seed: int = 0) -> PaletteCodec:
        """Fit a palette by k-means (k-means++ start, Lloyd's iterations), sorted from dark to light.

        Args:
            pixels: (..., 3) uint8 RGB; more than 500,000 are sampled down to that many.
            colors: K.
            seed: of the sample and of the start.

        Raises:
            ValueError: not uint8 RGB, or fewer distinct colours than K.
            ModuleNotFoundError: scikit-learn is missing (extra "probe").
        """
        try:
            from sklearn.cluster import KMeans  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('Fitting a palette needs scikit-learn: pip install "imagegpt[probe]".') from error
        flat = _check_pixels(pixels).reshape(-1, 3)
        rng = np.random.default_rng(seed)
        if len(flat) > DEFAULT_FIT_PIXELS:
            flat = flat[rng.choice(len(flat), DEFAULT_FIT_PIXELS, replace=False)]
        distinct = len(np.unique(flat, axis=0))
        if distinct < colors:
            raise ValueError(f"{colors} colours cannot be fitted to {distinct} distinct ones; ask for at most those.")
        # sklearn's inline types call every option a str.
        kmeans = KMeans(colors, n_init=1, max_iter=100, random_state=seed)  # pyright: ignore[reportArgumentType]
        centers = kmeans.fit(flat.astype(np.float32) / 127.5 - 1).cluster_centers_
        luma = centers @ np.array([0.299, 0.587, 0.114], np.float32)
        return cls(centers[np.lexsort((*centers.T, luma))])

    def _nearest(self, flat: NDArray[np.uint8]) -> NDArray[np.int64]:
        ids = np.empty(len(flat), np.int64)
        for start in range(0, len(flat), CHUNK):
            scaled = flat[start : start + CHUNK].astype(np.float32) / np.float32(127.5) - np.float32(1)
            distance = np.zeros((len(scaled), len(self)), np.float32)
            for channel in range(3):
                delta = scaled[:, channel, None] - self.clusters[None, :, channel]
                distance += delta * delta
            ids[start : start + CHUNK] = distance.argmin(1)
        return ids

    def _encode_distinct(self, flat: NDArray[np.uint8]) -> NDArray[np.int64]:
        packed = (flat[:, 0].astype(np.int32) << 16) | (flat[:, 1].astype(np.int32) << 8) | flat[:, 2]
        seen = np.zeros(1 << 24, bool)
        seen[packed] = True
        distinct = np.flatnonzero(seen)
        rgb = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], 1).astype(np.uint8)
        table = np.empty(1 << 24, np.int64)
        table[distinct] = self._nearest(rgb)
        return table[packed]


def _check_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim < 1 or pixels.shape[-1] != 3:
        raise ValueError(f"Pixels are uint8 RGB, shape (..., 3), not {pixels.dtype} {pixels.shape}.")
    return pixels
