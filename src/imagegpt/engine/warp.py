"""From logits to the next id: temperature, top-k, top-p, min-p, and the draw. Pure functions.

They are written once for numpy arrays and for torch tensors on any device, through the array API standard: a GPU draws
its ids itself, and no number travels to the host on the way.

Shape suffixes: B rows, K colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from imagegpt.errors import InputError

Array = Any  # a numpy array, or a torch tensor


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn. The filters apply in this order, as in transformers' `generate`.

    Args:
        temperature: logits are divided by it; 0 takes the most likely id (the lowest, of equals).
        top_k: only the k most likely ids; `None` is all. Ids that tie with the k-th stay.
        top_p: only the most likely ids that together reach this probability (Holtzman et al. 2020); `None` is all.
        min_p: only ids at least this times as likely as the likeliest (Nguyen et al. 2024); `None` is all.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) and not (value is None and name != "temperature"):
                raise InputError(f"{name} must be a number, not {value!r}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be a finite number of at least 0, not {self.temperature}.")
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or self.top_k < 1):
            raise InputError(
                f"top_k must be a whole number of at least 1, not {self.top_k}; leave it out for all colours."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be from 0 to 1, not {self.min_p}.")

    def choose(self, logits_BK: Array, uniform_B: Array) -> Array:
        """Draw one id a row by inverting the distribution function at a uniform number in [0, 1).

        Args:
            logits_BK: finite logits; unchanged.
            uniform_B: one number a row, so that the draw is a function of its arguments alone.

        Returns:
            (B,) int64, of the logits' kind.
        """
        if self.temperature == 0:
            return logits_BK.argmax(1)
        return draw(self.probabilities(logits_BK), uniform_B)

    def probabilities(self, logits_BK: Array) -> Array:
        """The distribution that `choose` draws from: float64, rows sum to 1. Needs a temperature above 0."""
        xp, logits_BK = array_namespace(logits_BK), wide(logits_BK)
        with np.errstate(over="ignore"):  # the lowest temperatures: minus infinity is right
            scaled_BK = (logits_BK - xp.max(logits_BK, axis=1, keepdims=True)) / self.temperature
        if self.top_k is not None:
            scaled_BK = keep_top_k(scaled_BK, self.top_k)
        probs_BK = softmax(scaled_BK)
        if self.top_p is not None:
            probs_BK = keep_top_p(probs_BK, self.top_p)
        if self.min_p is not None:
            probs_BK = keep_min_p(probs_BK, self.min_p)
        return probs_BK


def wide(logits_BK: Array) -> Array:
    """In float64; in float32 on Apple's GPUs, which have no float64."""
    xp = array_namespace(logits_BK)
    small = getattr(getattr(logits_BK, "device", None), "type", "") == "mps"
    return xp.astype(logits_BK, xp.float32 if small else xp.float64)


def softmax(logits_BK: Array) -> Array:
    """Row-wise softmax."""
    xp = array_namespace(logits_BK)
    exp_BK = xp.exp(logits_BK - xp.max(logits_BK, axis=1, keepdims=True))
    return exp_BK / xp.sum(exp_BK, axis=1, keepdims=True)


def log_probs(logits_BK: Array, ids_B: Array) -> Array:
    """Log-probability of one id a row under the model itself, without temperature and filters: (B,), nats."""
    xp, logits_BK = array_namespace(logits_BK), wide(logits_BK)
    shifted_BK = logits_BK - xp.max(logits_BK, axis=1, keepdims=True)
    chosen_B = xp.take_along_axis(shifted_BK, ids_B[:, None], axis=1)[:, 0]
    return chosen_B - xp.log(xp.sum(xp.exp(shifted_BK), axis=1))


def keep_top_k(logits_BK: Array, k: int) -> Array:
    """Set all but the k largest logits of each row (and those that tie with the k-th) to minus infinity."""
    if k >= logits_BK.shape[1]:
        return logits_BK
    xp = array_namespace(logits_BK)
    kth_B1 = xp.sort(logits_BK, axis=1)[:, -k, None]
    return xp.where(logits_BK < kth_B1, -math.inf, logits_BK)


def keep_top_p(probs_BK: Array, p: float) -> Array:
    """Keep each row's fewest most likely ids whose sum reaches p, at least one, and renormalise."""
    xp = array_namespace(probs_BK)
    order_BK = xp.argsort(-probs_BK, axis=1, stable=True)
    sorted_BK = xp.take_along_axis(probs_BK, order_BK, axis=1)
    before_BK = xp.cumulative_sum(sorted_BK, axis=1) - sorted_BK
    kept_BK = xp.take_along_axis(xp.where(before_BK < p, sorted_BK, 0.0), xp.argsort(order_BK, axis=1), axis=1)
    return kept_BK / xp.sum(kept_BK, axis=1, keepdims=True)


def keep_min_p(probs_BK: Array, p: float) -> Array:
    """Keep each row's ids that are at least p times as likely as its likeliest, and renormalise."""
    xp = array_namespace(probs_BK)
    kept_BK = xp.where(probs_BK >= p * xp.max(probs_BK, axis=1, keepdims=True), probs_BK, 0.0)
    return kept_BK / xp.sum(kept_BK, axis=1, keepdims=True)


def draw(probs_BK: Array, uniform_B: Array) -> Array:
    """The first id at which a row's cumulative probability exceeds the row's uniform number."""
    xp = array_namespace(probs_BK)
    cumulative_BK = xp.cumulative_sum(probs_BK, axis=1)
    # Scaled by the last sum, so that rounding can never put the number beyond it; ids of probability 0 are skipped.
    target_B1 = uniform_B[:, None] * cumulative_BK[:, -1:]
    return xp.sum(xp.astype(cumulative_BK <= target_B1, xp.int64), axis=1)


def uniforms(seed: int, sample: int, length: int, particle: int = 0) -> NDArray[np.float64]:
    """The random numbers of one sample of a picture: (length,) in [0, 1), one a position.

    They depend on the seed and on the sample's number alone, so a picture's samples are the same whatever else is
    drawn beside them, and asking for more samples leaves the first ones as they were.

    Args:
        seed: of the picture.
        sample: its number, from 0.
        length: T.
        particle: one of several histories of the sample; the first has the numbers that a sample alone has.
    """
    key = np.random.SeedSequence([seed, sample], spawn_key=(particle,) if particle else ())
    return np.random.Generator(np.random.Philox(key)).random(length)
