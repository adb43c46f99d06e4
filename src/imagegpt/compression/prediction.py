"""How a pixel is guessed from what the decoder has too, learnt on the way, with arithmetic that is exact everywhere.

A channel's level is the codec's plus a linear function of differences: of true neighbours, of the codec's colours
around, and of the channels that are known already. The function is the weighted least-squares fit to the pixels
so far, older ones counting less; both sides learn it alike, so no weight is sent. How far off it is depends on how far
off it was around; sixteen classes of that each learn the width of their errors.

So that both sides have the same bits on any machine: differences, errors and weights are whole numbers; sums of their
products stay below 2^53, which float64 holds exactly in whatever order they are added; the rest, element by element,
are sums, products, quotients and square roots, which IEEE 754 fixes.

Shape suffixes: N pixels, C channels, F differences, S classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagegpt.compression.student import LEVELS, UNIT, WIDTHS

KEPT = 63 / 64  # of the weight of what was learnt, from one step to the next
RIDGE = float(1 << 17)  # what holds a weight near 0 until there is more to learn from
FINE = 1 << 16  # a weight is a whole number of this part
MOST_WEIGHT = float(1 << 22)
# Mean errors around, in 1/16 levels, at which the next class begins: about half an octave each.
CLASSES = np.array([0, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512])
LEAST_ERROR, FIRST_COUNT, MOST_COUNT = 5, 8, 4000
# A width of Student's t is 1.15 times the mean error; errors are in 1/16 levels and widths in 1/4096.
WIDTH_OF_ERROR = 307.0
BORDERS = np.sqrt(WIDTHS[:-1].astype(np.float64) * WIDTHS[1:])
_SPREADS = 1 + WIDTHS / 4096
# What a pixel counts in the fit: one whose error is likely to be large says less.
COUNTS = np.rint(4096 / (_SPREADS * np.sqrt(_SPREADS)))


class Prediction:
    """What is learnt of pictures with so many channels.

    Args:
        channels: C.
        differences: F, of the channel that has most.
    """

    def __init__(self, channels: int, differences: int) -> None:
        self._weights_CF = np.zeros((channels, differences))
        self._squares_CFF = np.zeros((channels, differences, differences))
        self._moments_CF = np.zeros((channels, differences))
        self._errors_CS = np.tile(FIRST_COUNT * np.maximum(CLASSES, LEAST_ERROR).astype(np.float64), (channels, 1))
        self._counts_CS = np.full(self._errors_CS.shape, float(FIRST_COUNT))

    def means(self, channel: int, base_N: NDArray[np.int64], values_NF: NDArray[np.float64]) -> NDArray[np.int64]:
        """Predictions in 1/16 levels, 0 to 255 * 16.

        Args:
            channel: which.
            base_N: the codec's levels.
            values_NF: differences, whole numbers; F may be less than there is room for.
        """
        moved_N = values_NF @ self._weights_CF[channel, : values_NF.shape[1]]
        means_N = base_N * FINE + moved_N.astype(np.int64)
        half = FINE // UNIT // 2
        return np.clip((means_N + half) // (FINE // UNIT), 0, (LEVELS - 1) * UNIT)

    def scales(self, channel: int, around_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the table of distributions, and the classes, of pixels.

        Args:
            channel: which.
            around_N: mean errors around the pixels, in 1/16 levels.
        """
        classes_N = np.searchsorted(CLASSES, around_N, side="right") - 1
        widths_S = self._errors_CS[channel] / self._counts_CS[channel] * WIDTH_OF_ERROR
        return np.searchsorted(BORDERS, widths_S)[classes_N], classes_N

    def see(
        self,
        channel: int,
        values_NF: NDArray[np.float64],
        moved_N: NDArray[np.int64],
        errors_N: NDArray[np.int64],
        classes_N: NDArray[np.int64],
        scales_N: NDArray[np.int64],
    ) -> None:
        """Take in what pixels were.

        Args:
            channel: which.
            values_NF: their differences.
            moved_N: their levels less the codec's.
            errors_N: how far off the predictions were, in 1/16 levels.
            classes_N, scales_N: as `scales` gave them.
        """
        used, counted_NF = values_NF.shape[1], values_NF * COUNTS[scales_N][:, None]
        self._squares_CFF[channel, :used, :used] += counted_NF.T @ values_NF
        self._moments_CF[channel, :used] += counted_NF.T @ moved_N.astype(np.float64)
        errors_S, counts_S = self._errors_CS[channel], self._counts_CS[channel]
        errors_S += np.bincount(classes_N, errors_N, len(CLASSES))
        counts_S += np.bincount(classes_N, minlength=len(CLASSES))
        old_S = counts_S > MOST_COUNT
        errors_S[old_S] /= 2
        counts_S[old_S] /= 2

    def learn(self) -> None:
        """Fit the weights to what was seen, and let it count a little less from now on."""
        weights_CF = solve(self._squares_CFF + RIDGE * np.eye(self._weights_CF.shape[1]), self._moments_CF)
        self._weights_CF = np.clip(np.rint(FINE * weights_CF), -MOST_WEIGHT, MOST_WEIGHT)
        self._squares_CFF *= KEPT
        self._moments_CF *= KEPT


def solve(matrices_CFF: NDArray[np.float64], right_CF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solutions of positive definite systems by Gaussian elimination, element by element.

    A library's solver is faster, and free to round as it likes.
    """
    rows = np.concatenate([matrices_CFF, right_CF[..., None]], 2)
    size = right_CF.shape[1]
    for pivot in range(size - 1):
        factors = rows[:, pivot + 1 :, pivot] / rows[:, pivot, pivot, None]
        rows[:, pivot + 1 :, pivot:] -= factors[:, :, None] * rows[:, pivot, None, pivot:]
    found = rows[:, :, -1]
    for pivot in reversed(range(size)):
        found[:, pivot] /= rows[:, pivot, pivot]
        found[:, :pivot] -= rows[:, :pivot, pivot] * found[:, pivot, None]
    return found
