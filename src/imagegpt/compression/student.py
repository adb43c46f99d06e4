"""Tables of the distribution that errors of prediction are coded by: Student's t with six degrees of freedom.

Its distribution function is algebraic for an even number n of degrees (Abramowitz and Stegun 1964, 26.7.4; the angle
there has the tangent t / sqrt(n)):

    F(t) = 1/2 + 1/2 s (1 + 1/2 c + (1 3)/(2 4) c^2 + ... up to c^(n/2 - 1)),  s = t / sqrt(n + t^2),  c = n / (n + t^2)

which takes only additions, products, quotients and square roots. IEEE 754 fixes the bits of these, so every machine
builds the same tables; an exponential function would not do.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from imagegpt.compression.frequencies import spare_of

DEGREES = 6
LEVELS = 256  # of a channel
UNIT = 16  # parts of a level to which a prediction is told
SCALES = 64
# Width of each distribution in 1/4096 of a level: 0.08 levels to 116, a sixth of an octave apart.
WIDTHS = np.rint(4096 * 0.08 * 2.0 ** (np.arange(SCALES) / 6)).astype(np.int64)
REACH = UNIT * (LEVELS + 2)  # the furthest from its middle that a table knows


@cache
def cumulative() -> NDArray[np.int32]:
    """What lies below each place: (64 scales, 2 REACH + 1) whole parts of `spare_of(256)`; the middle is at REACH."""
    places = np.arange(-REACH, REACH + 1, dtype=np.float64) / UNIT
    spare = spare_of(LEVELS)
    return np.stack([np.rint(spare * distribution(places / (width / 4096))) for width in WIDTHS]).astype(np.int32)


def distribution(t: NDArray[np.float64], degrees: int = DEGREES) -> NDArray[np.float64]:
    """Student's distribution function at t, for an even number of degrees of freedom."""
    under = degrees + t * t
    cos2, sine = degrees / under, t / np.sqrt(under)
    term = total = np.ones_like(t)
    for k in range(1, degrees // 2):
        term = term * cos2 * ((2 * k - 1) / (2 * k))
        total = total + term
    return 0.5 + 0.5 * (sine * total)


def level_weights(means_N: NDArray[np.int64], scales_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """How likely each of the 256 levels is: (N, 256) whole parts of `spare_of(256)`; rows sum to it.

    What lies below level 0 counts for 0, and what lies above 255 for 255.

    Args:
        means_N: predictions in 1/16 levels, 0 to 255 * 16.
        scales_N: rows of the table.
    """
    table = cumulative()
    borders_L = REACH + UNIT * np.arange(1, LEVELS) - UNIT // 2
    below_NL = np.empty((len(means_N), LEVELS + 1), np.int64)
    below_NL[:, 0], below_NL[:, -1] = 0, spare_of(LEVELS)
    below_NL[:, 1:-1] = table[scales_N[:, None], borders_L - means_N[:, None]]
    return np.diff(below_NL, axis=1)
