"""From scores to p-values and thresholds, by normal pictures that nothing was fitted to.

Shape suffixes: N held-out normal pictures, B pictures.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

SLACK = 1e-9  # 0.05 x 20 is to be 1, whatever binary fractions make of it


def p_values(heldout_N: NDArray[np.float64], scores_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """How odd each score is among held-out normal ones: (1 + how many of these are as high) / (N + 1), (B,).

    Of a normal picture, which is exchangeable with the held-out ones, P(p-value <= a) <= a for every a (conformal
    p-values: Vovk et al. 2005; Laxhammar and Falkman 2015; Bates et al. 2023).

    Args:
        heldout_N: scores of normal pictures, higher where less normal.
        scores_B: of the pictures in question.

    Example:
        >>> p_values(np.array([1.0, 2.0, 3.0]), np.array([0.0, 3.0, 4.0]))
        array([1.  , 0.5 , 0.25])
    """
    below_B = np.searchsorted(np.sort(heldout_N), scores_B, side="left")
    return (1 + len(heldout_N) - below_B) / (len(heldout_N) + 1)


def threshold(heldout_N: NDArray[np.float64], fpr: float) -> float:
    """The score above which a picture's p-value is at most `fpr`.

    Of normal pictures to come the part floor(fpr (N + 1)) / (N + 1) lies above it on average where no scores are
    equal, which is at most `fpr` and less than 1 / (N + 1) below it.

    Raises:
        InputError: a rate out of (0, 1), or too few held-out pictures for it.
    """
    allowed = _allowed(len(heldout_N), fpr)
    return float(np.sort(heldout_N)[len(heldout_N) - allowed])


def check_rate(fpr: float, count: int | None = None) -> None:
    """Refuse a false-positive rate that can't be, or that `count` held-out pictures can't vouch for."""
    if not 0 < fpr < 1:  # NaN fails too
        raise InputError(f"The false-positive rate must be above 0 and below 1, not {fpr}.")
    if count is not None:
        _allowed(count, fpr)


def _allowed(count: int, fpr: float) -> int:
    """How many of `count` held-out scores, and one more for the picture itself, may be as high as a flagged one."""
    check_rate(fpr)
    allowed = math.floor(fpr * (count + 1) + SLACK)
    if not allowed:
        needed = math.ceil(1 / fpr - SLACK) - 1
        raise InputError(
            f"A false-positive rate of {fpr} needs {needed} held-out normal pictures or more, and there are {count}: "
            "give more normal pictures, hold out a larger part, or choose a larger rate."
        )
    return allowed
