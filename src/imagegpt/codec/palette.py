"""PaletteCodec: colours <-> ids by the nearest of K colours (Chen et al. 2020, section 3.1)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from imagegpt.codec.codec import in_rows
from imagegpt.codec.nearest import nearest, pack
from imagegpt.codec.tables import table_for, table_pays
from imagegpt.errors import InputError, reason
from imagegpt.files import write_whole

CLUSTERS = "clusters"  # the entry of JSON files that is a palette


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

    factor = 1

    def __init__(self, clusters: ArrayLike) -> None:
        colors = np.ascontiguousarray(clusters, dtype=np.float32)
        if colors.ndim != 2 or colors.shape[1] != 3 or not len(colors):
            raise ValueError(f"A palette is an array of K colours, shape (K, 3), not {colors.shape}.")
        if not np.isfinite(colors).all():
            raise ValueError("The palette holds a colour that is not finite.")
        self.clusters: NDArray[np.float32] = colors
        self._fingerprint = hashlib.sha256(colors.tobytes()).hexdigest()[:16]
        # The paper's decoding, rint(127.5 (c + 1)).
        self._rgb = np.rint(127.5 * (colors + 1)).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        """K, the number of colours."""
        return len(self.clusters)

    @property
    def name(self) -> str:
        """What results call it."""
        return f"palette of {len(self)}"

    @property
    def colors(self) -> NDArray[np.float32]:
        """The colour of each id, (K, 3) in [-1, 1]: `clusters`."""
        return self.clusters

    @property
    def fingerprint(self) -> str:
        """A hex digest of the colours: what data sets and features record of their codec."""
        return self._fingerprint

    def encode(self, pixels: Any) -> Any:
        """The nearest colour of each pixel, by squared L2 in float32; ties go to the lowest id.

        Args:
            pixels: (..., 3) RGB, an array or a torch tensor on any device: uint8, or floats in the palette's scale of
                [-1, 1] (a level x is x / 127.5 - 1).

        Returns:
            (...) int64 ids: an array, or a tensor on the same device.

        Raises:
            ValueError: another dtype, a number that is not finite, or the last dimension is not 3.
        """
        if hasattr(pixels, "detach"):
            from imagegpt.codec.torch_nearest import encode_tensor

            return encode_tensor(self, pixels)
        pixels = _check_pixels(pixels)
        flat = pixels.reshape(-1, 3)
        if flat.dtype == np.uint8 and table_pays(self.fingerprint, len(flat)):
            ids = self.table[pack(flat)]
        else:
            ids = nearest(flat, self.clusters)
        return ids.astype(np.int64, copy=False).reshape(pixels.shape[:-1])

    @property
    def table(self) -> NDArray[np.integer]:
        """The id of every uint8 colour, (2^24,), at r 65536 + g 256 + b; built once for each palette, then kept."""
        return table_for(self.fingerprint, self.clusters)

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
            MissingExtra: scikit-learn is missing (extra "probe").
        """
        from imagegpt.codec.fit import PIXELS, cluster_colors

        flat = _check_pixels(pixels).reshape(-1, 3)
        if flat.dtype != np.uint8:
            raise ValueError(f"A palette is fitted to uint8 pixels, not {flat.dtype}.")
        if len(flat) > PIXELS:
            flat = flat[np.random.default_rng(seed).choice(len(flat), PIXELS, replace=False)]
        return cls(cluster_colors(flat, colors, seed))

    @classmethod
    def load(cls, path: str | Path) -> PaletteCodec:
        """Read a palette: an .npy file such as OpenAI's `kmeans_centers.npy`, (K, 3) in [-1, 1]; never a pickle.

        Raises:
            InputError: no such file, no .npy, or no palette in it; the message names the file.
        """
        try:
            return cls(np.load(path, allow_pickle=False))
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file.") from None
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} holds no palette: {reason(error)}") from None

    def save(self, path: str | Path) -> None:
        """Write the colours as an .npy file that `load` and OpenAI's code read, whole or not at all."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # of a path without its ending numpy would make another one
                np.save(file, self.clusters)

        write_whole(Path(path), write)

    def store(self, folder: Path) -> dict[str, Any]:
        """The colours themselves as JSON's entry; no file is written. See `Codec.store`."""
        return {CLUSTERS: self.clusters.astype(float).tolist()}

    def picture(self, cell: int = 16) -> Image.Image:
        """All colours in rows, from id 0 at the top left: as square as it gets, `cell` pixels a colour."""
        return in_rows(self._rgb[:, None, None], cell)


def _check_pixels(pixels: Any) -> NDArray[Any]:
    """uint8 stays, floats become float32."""
    pixels = np.asarray(pixels)
    if (pixels.dtype != np.uint8 and pixels.dtype.kind != "f") or pixels.ndim < 1 or pixels.shape[-1] != 3:
        raise ValueError(f"Pixels are uint8 or float RGB, shape (..., 3), not {pixels.dtype} {pixels.shape}.")
    if pixels.dtype == np.uint8:
        return pixels
    if not np.isfinite(pixels).all():
        raise ValueError("The pixels hold a number that is not finite.")
    return pixels.astype(np.float32, copy=False)
