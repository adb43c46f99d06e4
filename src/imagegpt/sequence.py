"""Pictures as sequences: raster order, the start token, and the ids that are given.

Shape suffixes: B batch, T ids of a picture, P given ids.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError


def parse_grid(text: str, told: str = "grid must be") -> tuple[int, int]:
    """A grid as it is typed: "32x48" is 32 rows of 48 ids.

    Args:
        text: HEIGHTxWIDTH.
        told: how the message begins.

    Raises:
        InputError: another form, or a side of 0.
    """
    sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    rule = f"{told} HEIGHTxWIDTH, such as 32x32, not {text!r}"
    if sides is None:
        raise InputError(f"{rule}.")
    height, width = int(sides[1]), int(sides[2])
    if not height or not width:
        raise InputError(f"{rule}: its {'width' if height else 'height'} must be a whole number of at least 1.")
    return height, width


def flatten(ids_BHW: NDArray[Any]) -> NDArray[Any]:
    """(B, height, width) to (B, T), row by row."""
    return ids_BHW.reshape(len(ids_BHW), math.prod(ids_BHW.shape[1:]))  # of no pictures too


def unflatten(ids_BT: NDArray[Any], grid: tuple[int, int]) -> NDArray[Any]:
    """(B, T) to (B, height, width), row by row; what comes after T, as channels, stays."""
    return ids_BT.reshape(len(ids_BT), *grid, *ids_BT.shape[2:])


def with_sos(prompt_BP: NDArray[np.int64], sos: int) -> NDArray[np.int64]:
    """Put the start token before each row: (B, P) to (B, P + 1)."""
    return np.concatenate([np.full((len(prompt_BP), 1), sos, np.int64), prompt_BP], axis=1)


def known_later(known_RT: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which known ids come after an unknown one, and so are no part of a prompt."""
    return known_RT & ~np.logical_and.accumulate(known_RT, axis=1)


def prompt_length(keep: float, length: int) -> int:
    """How many of a picture's first ids are given: `keep` of `length`, to the nearest, at least one left to paint.

    Args:
        keep: part of the picture that is given, from 0 (nothing) to below 1.
        length: T.

    Raises:
        InputError: `keep` is not a number in [0, 1).

    Example:
        >>> prompt_length(0.5, 1024)
        512
    """
    if not 0 <= keep < 1:  # NaN fails too
        raise InputError(f"keep must be at least 0 and below 1 (a part of the picture), not {keep}.")
    return min(round(keep * length), length - 1)
