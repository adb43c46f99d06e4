"""Pictures of one size while their pixels become known: in what order, and what is around each.

A pixel (y, x) is coded at step x + 2 y. So its neighbours to the left and above, the one above to the right included,
are known, and the pixels of a step, at most one in each row, don't depend on one another: they are coded together, in
all pictures at once. What the codec makes of the ids, which is known everywhere, lies behind, brought to the pictures'
size.

Shape suffixes: P pictures, G pixels of a framed picture, M pixels of a step, C channels, A places around a pixel, F
differences, X cells of a canvas.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.pictures import Framing
from imagegpt.compression.student import UNIT

MARGIN = 2  # cells beside and above a picture, which hold the codec's colours
TRUE = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))  # (down, right) of pixels that are known
LINKED = 4  # the first so many of them are also seen in channels known before
CODED = ((0, 0), (0, -1), (-1, 0), (-1, -1), (-1, 1), (0, 1), (1, 0), (1, -1), (1, 1))
ERROR_PARTS = np.array([4, 4, 2, 2, 1, 1])  # what the error at each place of TRUE counts; in channels before, 2
EVEN = 16.0  # a difference that is always the same: the function's constant
COARSE = 4  # errors around are kept in quarters of a level
UNSEEN = 32  # the error, in these, that is supposed where nothing was coded


def differences(channels: int) -> int:
    """F, of a picture's last channel."""
    return len(TRUE) + len(CODED) - 1 + (channels - 1) * (1 + LINKED) + 1


class Canvas:
    """P pictures of one size on their way.

    Args:
        size: (height, width).
        colors_PGC: uint8 levels of the framed pictures, as the codec makes them of the ids.
        framing: how pictures were framed.
    """

    def __init__(self, size: tuple[int, int], colors_PGC: NDArray[np.uint8], framing: Framing) -> None:
        (self._height, self._width), self._framing, self._colors_PGC = size, framing, colors_PGC
        pictures, _, self.channels = colors_PGC.shape
        self._stride = self._width + 2 * MARGIN
        self._rows, self._columns = positions(size, framing)
        shape = (self.channels, pictures, (self._height + MARGIN) * self._stride)
        self._levels_CPX, self._errors_CPX = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self._offsets = np.array([down * self._stride + right for down, right in TRUE])
        self._fill_margins()

    def steps(self) -> Iterator[NDArray[np.int64]]:
        """The pixels of each step, as y * width + x."""
        for step in range(self._width + 2 * (self._height - 1)):
            first = max(0, (step - self._width + 2) // 2)
            y_M = np.arange(first, min(self._height - 1, step // 2) + 1)
            if len(y_M):  # a narrow picture has steps without a pixel
                yield y_M * self._width + step - 2 * y_M

    def at(self, pixels_M: NDArray[np.int64]) -> Step:
        """What is around the pixels of a step."""
        return Step(self, pixels_M)

    def cells(self, pixels_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where pixels lie on the canvas."""
        y_M, x_M = np.divmod(pixels_M, self._width)
        return (y_M + MARGIN) * self._stride + x_M + MARGIN

    def levels(self, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Levels at cells: (C, P, ...)."""
        return self._levels_CPX[:, :, cells]

    def errors(self, channel: int, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Errors at cells: (P, ...), in quarters of a level."""
        return self._errors_CPX[channel][:, cells]

    def near(self, cells_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cells of the known pixels around: (A, M)."""
        return self._offsets[:, None] + cells_M

    def colors(self, pixels_M: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The codec's levels at pixels and, one framed pixel further, around: (C, P, A, M)."""
        y_M, x_M = np.divmod(pixels_M, self._width)
        height, width = self._framing.height, self._framing.width
        down_A1, right_A1 = np.array(CODED).T[..., None]
        rows_AM = np.clip(self._rows[y_M] + down_A1, 0, height - 1)
        columns_AM = np.clip(self._columns[x_M] + right_A1, 0, width - 1)
        return np.moveaxis(self._colors_PGC[:, rows_AM * width + columns_AM], -1, 0)

    def put(self, channel: int, cells_M: NDArray[np.int64], levels_PM: NDArray, errors_PM: NDArray[np.int64]) -> None:
        """Take in a channel of a step's pixels, and how far off their predictions were, in 1/16 levels."""
        self._levels_CPX[channel][:, cells_M] = levels_PM
        self._errors_CPX[channel][:, cells_M] = np.minimum(errors_PM // (UNIT // COARSE), 255)

    def pictures(self) -> NDArray[np.uint8]:
        """What is known: (P, height, width, C)."""
        shape = (*self._levels_CPX.shape[:2], self._height + MARGIN, self._stride)
        inner = self._levels_CPX.reshape(shape)[:, :, MARGIN:, MARGIN:-MARGIN]
        return np.moveaxis(inner, 0, -1)

    def _fill_margins(self) -> None:
        """The codec's colours, as they are at the border."""
        colors = self._colors_PGC.reshape(len(self._colors_PGC), self._framing.height, self._framing.width, -1)
        shape = (*self._levels_CPX.shape[:2], self._height + MARGIN, self._stride)
        levels = self._levels_CPX.reshape(shape)
        rows = np.concatenate([self._rows[:1], self._rows[:1], self._rows])
        columns = np.pad(self._columns, MARGIN, "edge")
        border = np.moveaxis(colors, -1, 0)
        levels[:, :, :MARGIN] = border[:, :, rows[:MARGIN]][..., columns]
        errors = self._errors_CPX.reshape(shape)
        errors[:, :, :MARGIN] = UNSEEN
        for edge in (slice(0, MARGIN), slice(-MARGIN, None)):
            levels[:, :, :, edge] = border[:, :, rows][..., columns[edge]]
            errors[..., edge] = UNSEEN


class Step:
    """The pixels of one step, and what is around them.

    Args:
        canvas: whose pixels they are.
        pixels_M: which.
    """

    def __init__(self, canvas: Canvas, pixels_M: NDArray[np.int64]) -> None:
        self._canvas, self.cells_M = canvas, canvas.cells(pixels_M)
        self._near_AM = canvas.near(self.cells_M)
        self._true_CPAM = canvas.levels(self._near_AM).astype(np.float64)
        self._coded_CPAM = canvas.colors(pixels_M).astype(np.float64)

    def base(self, channel: int) -> NDArray[np.int64]:
        """The codec's own levels, (N,)."""
        return self._coded_CPAM[channel, :, 0].astype(np.int64).reshape(-1)

    def known(self, channel: int) -> list[NDArray[np.int64]]:
        """Levels of the channels before, (N,) each."""
        levels_CPM = self._canvas.levels(self.cells_M)[:channel]
        return [levels_PM.astype(np.int64).reshape(-1) for levels_PM in levels_CPM]

    def values(self, channel: int) -> NDArray[np.float64]:
        """The differences that a channel is guessed from: (N, F)."""
        own_CP1M = self._coded_CPAM[:, :, :1]
        parts = [self._true_CPAM[channel] - own_CP1M[channel], self._coded_CPAM[channel, :, 1:] - own_CP1M[channel]]
        levels_CPM = self._canvas.levels(self.cells_M)
        for before in range(channel):
            parts.append(levels_CPM[before][:, None] - own_CP1M[before])
            parts.append(self._true_CPAM[before, :, :LINKED] - own_CP1M[before])
        parts.append(np.full_like(own_CP1M[0], EVEN))
        values_PFM = np.concatenate(parts, 1)
        return np.ascontiguousarray(np.moveaxis(values_PFM, 1, 2).reshape(-1, values_PFM.shape[1]))

    def around(self, channel: int) -> NDArray[np.int64]:
        """The mean error around each pixel, (N,), in 1/16 levels."""
        errors_PAM = self._canvas.errors(channel, self._near_AM).astype(np.int64)
        sums_PM = (ERROR_PARTS[:, None] * errors_PAM).sum(1)
        for before in range(channel):
            sums_PM = sums_PM + 2 * self._canvas.errors(before, self.cells_M).astype(np.int64)
        parts = ERROR_PARTS.sum() + 2 * channel
        return (sums_PM * (UNIT // COARSE) // parts).reshape(-1)


def positions(size: tuple[int, int], framing: Framing) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of the framed picture that each row of a picture's pixels lies in, and the column of each column.

    Whole numbers alone. What a centred crop cuts off lies beside the framed picture, and takes its border.

    Args:
        size: (height, width) of the picture.
        framing: how it was framed.
    """
    (height, width), rows, columns = size, framing.height, framing.width
    scale_y, scale_x = (height, rows), (width, columns)  # pixels in as many framed ones
    if framing.crop != "none":
        scale_y = scale_x = min(scale_y, scale_x, key=lambda pair: pair[0] / pair[1])
    return _along(height, rows, *scale_y), _along(width, columns, *scale_x)


def _along(pixels: int, framed: int, many: int, few: int) -> NDArray[np.int64]:
    """Framed pixels along a side, of which `few` lie in `many` pixels and all are centred."""
    from_middle = 2 * np.arange(pixels, dtype=np.int64) + 1 - pixels  # of each pixel's middle, in half pixels
    return np.clip((from_middle * few + framed * many) // (2 * many), 0, framed - 1)
