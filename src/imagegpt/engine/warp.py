"""From logits to the next id: temperature, top-k, top-p, and the draw. Pure functions.

Shape suffixes: B rows, K colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn. The filters apply in this order, as in transformers' `generate`.

    Args:
        temperature: logits are divided by it; 0 takes the most likely id (the lowest, of equals).
        top_k: only the k most likely ids; `None` is all. Ids that tie with the k-th stay.
        top_p: only the most likely ids that together reach this probability (Holtzman et al. 2020); `None` is all.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be a finite number of at least 0, not {self.temperature}.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise InputError(
                f"top_k must be a whole number of at least 1, not {self.top_k}; leave it out for all colours."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}.")

    def choose(self, logits_BK: NDArray[np.floating], uniform_B: NDArray[np.float64]) -> NDArray[np.int64]:
        """Draw one id a row by inverting the distribution function at a uniform number in [0, 1).

        Args:
            logits_BK: finite logits; unchanged.
            uniform_B: one number a row, so that the draw is a function of its arguments alone.
        """
        if self.temperature == 0:
            return logits_BK.argmax(1)
        return draw(self.probabilities(logits_BK), uniform_B)

    def probabilities(self, logits_BK: NDArray[np.floating]) -> NDArray[np.float64]:
        """The distribution that `choose` draws from: float64, rows sum to 1. Needs a temperature above 0."""
        logits_BK = logits_BK.astype(np.float64)
        with np.errstate(over="ignore"):  # the lowest temperatures: minus infinity is right
            scaled_BK = (logits_BK - logits_BK.max(1, keepdims=True)) / self.temperature
        if self.top_k is not None:
            scaled_BK = keep_top_k(scaled_BK, self.top_k)
        probs_BK = softmax(scaled_BK)
        if self.top_p is not None:
            probs_BK = keep_top_p(probs_BK, self.top_p)
        return probs_BK


def softmax(logits_BK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row-wise softmax."""
    exp_BK = np.exp(logits_BK - logits_BK.max(1, keepdims=True))
    return exp_BK / exp_BK.sum(1, keepdims=True)


def keep_top_k(logits_BK: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Set all but the k largest logits of each row (and those that tie with the k-th) to minus infinity."""
    if k >= logits_BK.shape[1]:
        return logits_BK
    kth_B1 = np.partition(logits_BK, -k, axis=1)[:, -k, None]
    return np.where(logits_BK < kth_B1, -np.inf, logits_BK)


def keep_top_p(probs_BK: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Keep each row's fewest most likely ids whose sum reaches p, at least one, and renormalise."""
    order_BK = np.argsort(-probs_BK, axis=1, kind="stable")
    sorted_BK = np.take_along_axis(probs_BK, order_BK, 1)
    before_BK = sorted_BK.cumsum(1) - sorted_BK
    kept_BK = np.empty_like(probs_BK)
    np.put_along_axis(kept_BK, order_BK, np.where(before_BK < p, sorted_BK, 0.0), 1)
    return kept_BK / kept_BK.sum(1, keepdims=True)


def draw(probs_BK: NDArray[np.float64], uniform_B: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first id at which a row's cumulative probability exceeds the row's uniform number."""
    cumulative_BK = probs_BK.cumsum(1)
    # Scaled by the last sum, so that rounding can never put the number beyond it; ids of probability 0 are skipped.
    target_B1 = uniform_B[:, None] * cumulative_BK[:, -1:]
    return (cumulative_BK <= target_B1).sum(1)


def uniforms(seed: int, sample: int, length: int) -> NDArray[np.float64]:
    """The random numbers of one sample of a picture: (length,) in [0, 1), one a position.

    They depend on the seed and on the sample's number alone, so a picture's samples are the same whatever else is
    drawn beside them, and asking for more samples leaves the first ones as they were.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, sample]))).random(length)
