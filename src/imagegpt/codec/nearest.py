"""The nearest of K colours, exactly, at any number of pixels.

Every path computes the same float32 numbers, ((r - r')^2 + (g - g')^2) + (b - b')^2, and takes the lowest id among
equals, so all paths give the same ids:

* `nearest`: all K distances of each pixel, for few pixels;
* `build_table`: all 2^24 colours at once. The cube of colours is cut into cells; in a cell only those colours of the
  palette can be nearest whose least distance to the cell is no more than the largest distance of some other colour.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Pixels compared with all colours at once: the distances of 1,024 pixels to 512 colours are 2 MiB.
CHUNK = 1024
SIDE = 16  # of a cell, in levels: measured fastest, with 9 candidates a cell for 512 colours of photographs
LEVELS = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def pack(flat: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(P, 3) uint8 colours as one number each: r 65536 + g 256 + b."""
    return (flat[:, 0].astype(np.int32) << 16) | (flat[:, 1].astype(np.int32) << 8) | flat[:, 2]


def nearest(flat: NDArray[np.uint8] | NDArray[np.float32], clusters: NDArray[np.float32]) -> NDArray[np.int64]:
    """Ids of (P, 3) pixels: uint8 levels, or float32 colours in the palette's own scale of [-1, 1]."""
    ids = np.empty(len(flat), np.int64)
    by_level = _level_distances(clusters) if flat.dtype == np.uint8 else None
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        if by_level is not None:
            distance, green, blue = (by_level[channel][part[:, channel]] for channel in range(3))
        else:
            distance, green, blue = (np.square(part[:, c, None] - clusters[:, c]) for c in range(3))
        distance += green
        distance += blue
        ids[start : start + CHUNK] = distance.argmin(1)
    return ids


def build_table(clusters: NDArray[np.float32]) -> NDArray[np.integer]:
    """The nearest colour of every uint8 colour, (2^24,) indexed by r 65536 + g 256 + b; about half a second."""
    cells = 256 // SIDE
    parts = _level_distances(clusters).reshape(3, cells, SIDE, -1)
    possible = _candidates(parts)
    least = np.full((cells**3, SIDE**3), np.inf, np.float32)
    ids = np.zeros((cells**3, SIDE**3), np.uint16 if len(clusters) <= 1 << 16 else np.uint32)
    for color in range(len(clusters)):  # ascending, and only a smaller distance replaces: ties go to the lowest id
        where = np.flatnonzero(possible[:, color])
        red, green, blue = where // cells**2, where // cells % cells, where % cells
        plane = parts[0][red, :, color][:, :, None] + parts[1][green, :, color][:, None, :]
        distance = (plane[..., None] + parts[2][blue, :, color][:, None, None, :]).reshape(len(where), SIDE**3)
        nearer = distance < least[where]
        least[where] = np.where(nearer, distance, least[where])
        ids[where] = np.where(nearer, color, ids[where])
    cube = ids.reshape(cells, cells, cells, SIDE, SIDE, SIDE).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(cube).reshape(-1)


def _level_distances(clusters: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distance of each level to each colour's channel: (3, 256, K)."""
    return np.square(LEVELS[None, :, None] - clusters.T[:, None, :])


def _candidates(parts: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(cells^3, K): which colours may be nearest somewhere in a cell."""
    low, high = parts.min(2), parts.max(2)  # (3, cells, K)
    cells = low.shape[1]
    near = low[0][:, None] + low[1][None]
    far = high[0][:, None] + high[1][None]
    possible = np.empty((cells, cells, cells, low.shape[2]), bool)
    for blue in range(cells):
        bound = (far + high[2][blue]).min(-1, keepdims=True)
        possible[:, :, blue] = near + low[2][blue] <= bound * np.float32(1 + 1e-5)  # sums are rounded
    return possible.reshape(cells**3, -1)
