"""Probabilities as whole numbers, by one fixed rule: what the range coder works with.

A coder needs whole frequencies that the decoder finds again bit by bit. Here those of one symbol sum to 2^24 (the
precision of `constriction`), and none is below a floor that together takes a part in 1,024: so anything can be coded,
and a symbol is never free, which bounds how much a few bytes of a forged file can make a decoder do.

Shape suffixes: N symbols that are coded together, S values that a symbol may have.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError

BITS = 24
TOTAL = 1 << BITS
FLOOR_PART = 1 << 10
MOST_VALUES = 1 << 16


def floor_of(values: int) -> int:
    """The least frequency of one of so many values: 2^24 / (1024 S), rounded down, and at least 1."""
    return max(1, TOTAL // (FLOOR_PART * values))


def spare_of(values: int) -> int:
    """What is left of 2^24 when each of so many values has the floor."""
    return TOTAL - values * floor_of(values)


def from_logits(logits_NS: NDArray[np.float32]) -> NDArray[np.int64]:
    """Frequencies of the softmax of logits.

    p is the softmax in float64 of the float32 logits. A value has the floor and floor(p * spare); what rounding down
    left over goes to the likeliest (the lowest, of equals).

    Args:
        logits_NS: of the next ids, on the host.

    Returns:
        (N, S) whole numbers; rows sum to 2^24.

    Raises:
        InputError: a logit is not finite.
    """
    wide_NS = logits_NS.astype(np.float64)
    if not np.isfinite(wide_NS).all():
        raise InputError("The model's logits are not all finite, so nothing can be coded with them; try fp32.")
    exp_NS = np.exp(wide_NS - wide_NS.max(1, keepdims=True))
    shares_NS = np.floor(exp_NS / exp_NS.sum(1, keepdims=True) * spare_of(logits_NS.shape[1]))
    return _completed(shares_NS.astype(np.int64))


def from_weights(weights_NS: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies in proportion to whole weights, by whole numbers alone, so that they are the same on any machine.

    A value has the floor and weight * spare // sum; what is left over goes to the heaviest (the lowest, of equals).

    Args:
        weights_NS: at least 0 and below 2^32, and not all 0 in a row.

    Returns:
        (N, S) whole numbers; rows sum to 2^24.
    """
    sums_N1 = weights_NS.sum(1, keepdims=True)
    return _completed(weights_NS * spare_of(weights_NS.shape[1]) // sums_N1)


def _completed(shares_NS: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shares of what is spare, rounded down, to frequencies."""
    rest_N = spare_of(shares_NS.shape[1]) - shares_NS.sum(1)
    shares_NS[np.arange(len(shares_NS)), shares_NS.argmax(1)] += rest_N
    return shares_NS + floor_of(shares_NS.shape[1])


def least_bits(values: int) -> float:
    """What the likeliest of so many values costs at least: about 0.0014 bits."""
    return BITS - math.log2(TOTAL - (values - 1) * floor_of(values))


def bits(frequencies_NS: NDArray[np.int64], symbols_N: NDArray[Any]) -> float:
    """What an ideal coder needs for these symbols: the sum of log2(2^24 / frequency)."""
    chosen_N = frequencies_NS[np.arange(len(symbols_N)), symbols_N]
    return float((BITS - np.log2(chosen_N)).sum())
