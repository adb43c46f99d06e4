"""What a picture's ids are worth to models that only count, and what such a model paints: nano's baselines.

Shape suffixes: B pictures, T ids, K colours, R rows of ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BACKING = 100.0  # counts' worth of the colours alone in the distribution after each left neighbour


class Counting:
    """Each colour alone, and each given its left neighbour; a row's first id has its colour alone.

    Args:
        ids_BT: pictures to count.
        width: ids of a row.
        colors: K.
    """

    def __init__(self, ids_BT: NDArray[np.int64], width: int, colors: int) -> None:
        self.width = width
        self.unigram_K = (np.bincount(ids_BT.ravel(), minlength=colors) + 1.0) / (ids_BT.size + colors)
        rows_RW = ids_BT.reshape(-1, width)
        pairs = rows_RW[:, :-1].ravel() * colors + rows_RW[:, 1:].ravel()
        pairs_KK = np.bincount(pairs, minlength=colors**2).reshape(colors, colors)
        self.bigram_KK = (pairs_KK + BACKING * self.unigram_K) / (pairs_KK.sum(1, keepdims=True) + BACKING)

    def nats_per_token(self, ids_BT: NDArray[np.int64]) -> dict[str, float]:
        """Of the colours alone, and given left neighbours."""
        rows_RW = ids_BT.reshape(-1, self.width)
        total = (
            -np.log(self.unigram_K[rows_RW[:, 0]]).sum() - np.log(self.bigram_KK[rows_RW[:, :-1], rows_RW[:, 1:]]).sum()
        )
        return {
            "unigram_nats_per_token": round(float(-np.log(self.unigram_K[ids_BT]).mean()), 4),
            "left_neighbour_nats_per_token": round(float(total / ids_BT.size), 4),
        }

    def complete(self, ids_BT: NDArray[np.int64], given: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Keep the first `given` ids of pictures, and paint the rest from left to right."""
        painted_BT = ids_BT.copy()
        first_K, next_KK = np.cumsum(self.unigram_K), np.cumsum(self.bigram_KK, 1)
        for place in range(given, ids_BT.shape[1]):
            uniform_B1 = rng.random((len(ids_BT), 1))
            table = first_K[None] if place % self.width == 0 else next_KK[painted_BT[:, place - 1]]
            painted_BT[:, place] = np.minimum((table < uniform_B1).sum(1), len(first_K) - 1)
        return painted_BT
