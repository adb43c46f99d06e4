"""How dense normal pictures lie about a point: a kernel density estimate with the normal pictures' own covariance.

Shape suffixes: N normal pictures, B pictures, S statistics.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

POINTS = 4096  # kernels at most: each picture is compared with all of them
BLOCK = 1 << 22  # distances that are worked out at once
FLOOR = 1e-9  # of a statistic's deviation, so that one that never changes divides by no zero

Rows = NDArray[np.float64]


class Density:
    """A Gaussian kernel density estimate (Scott 1992, chapter 6).

    The kernels have the covariance C of the normal pictures times h^2, with Scott's h = N^(-1 / (S + 4)):
    p(x) = 1/N sum over n of N(x; x_n, h^2 C).

    Args:
        x_NS: statistics of normal pictures, two at least; of more than 4,096 the first ones count.
    """

    def __init__(self, x_NS: Rows) -> None:
        x_NS = x_NS[:POINTS]
        self.count, self.width = x_NS.shape
        self._mean_S = x_NS.mean(0)
        scale_S = x_NS.std(0, ddof=1) + FLOOR
        # Statistics of a few pictures may lie in a plane; a whiff of independence lets any covariance be inverted.
        correlation_SS = np.cov(x_NS / scale_S, rowvar=False).reshape(self.width, self.width)
        bandwidth = self.count ** (-1 / (self.width + 4))
        root_SS = np.linalg.cholesky(correlation_SS + FLOOR * np.eye(self.width)) * bandwidth * scale_S[:, None]
        self._whiten_SS = np.linalg.inv(root_SS).T
        self._constant = (
            math.log(self.count)
            + self.width / 2 * math.log(2 * math.pi)
            + float(np.log(np.abs(np.diagonal(root_SS))).sum())
        )
        self._points_NS = (x_NS - self._mean_S) @ self._whiten_SS

    def surprise(self, x_BS: Rows) -> Rows:
        """-log p of each row, (B,)."""
        points_BS = (x_BS - self._mean_S) @ self._whiten_SS
        step = max(1, BLOCK // (self.count * self.width))
        parts = [self._surprise(points_BS[start : start + step]) for start in range(0, len(points_BS), step)]
        return np.concatenate([np.empty(0), *parts])

    def _surprise(self, points_BS: Rows) -> Rows:
        half_BN = np.square(points_BS[:, None] - self._points_NS).sum(2) / 2
        least_B = half_BN.min(1)  # so that no sum of powers is 0, however far away a row is
        return self._constant + least_B - np.log(np.exp(least_B[:, None] - half_BN).sum(1))
