"""A small model of ids that knows only the neighbours to the left and above: the background of likelihood ratios.

Its distribution mixes what followed the same pair of neighbours in the normal pictures with what followed either of
them, and that with how frequent each id is, by the rule of Witten and Bell (1991, "The zero-frequency problem",
method C; interpolated as in Chen and Goodman 1999): after a context c that was seen n(c) times, before d(c) different
ids,

    P(x | c) = (n(c, x) + d(c) P'(x)) / (n(c) + d(c)),

where P' is the next smaller model: of the pair the mean of those of its two members, of these the ids alone, of
those 1 / K. It sums to 1, and nothing has probability 0. A neighbour beyond the edge counts as one more id, K.

Shape suffixes: B pictures, T ids, M different events.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagegpt.sequence import flatten, unflatten

Grid = tuple[int, int]
Ids = NDArray[np.int64]


class Background:
    """The model, made of how often each id stood beside each pair of neighbours.

    Args:
        grid: (height, width).
        colors: K.
        keys_M: int64, the events that were seen, ascending: ((above (K + 1) + left) K + id.
        counts_M: how often each was, at least once.
    """

    def __init__(self, grid: Grid, colors: int, keys_M: Ids, counts_M: NDArray[np.integer]) -> None:
        self.grid, self.colors = grid, colors
        self.keys_M, self.counts_M = keys_M, counts_M.astype(np.int64)
        pairs_M, ids_M = np.divmod(keys_M, colors)
        above_M, left_M = np.divmod(pairs_M, colors + 1)
        self._pair = _table(keys_M, self.counts_M, colors)
        self._left = _table(*_merge(left_M * colors + ids_M, self.counts_M), colors)
        self._above = _table(*_merge(above_M * colors + ids_M, self.counts_M), colors)
        self._alone = _table(*_merge(ids_M, self.counts_M), colors)

    def surprise(self, ids_BT: Ids) -> NDArray[np.float64]:
        """-log p of each id given its neighbours to the left and above, in nats: (B, T)."""
        left_BT, above_BT = neighbours(ids_BT, self.grid, self.colors)
        any_BT = np.full(ids_BT.shape, 1 / self.colors)
        alone_BT = self._alone.mix(np.zeros_like(ids_BT), ids_BT, any_BT)
        either_BT = (self._left.mix(left_BT, ids_BT, alone_BT) + self._above.mix(above_BT, ids_BT, alone_BT)) / 2
        return -np.log(self._pair.mix(above_BT * (self.colors + 1) + left_BT, ids_BT, either_BT))


class Counter:
    """Counts the events of normal pictures, batch by batch.

    Args:
        grid: (height, width).
        colors: K.
    """

    def __init__(self, grid: Grid, colors: int) -> None:
        self.grid, self.colors = grid, colors
        self._counted = np.empty(0, np.int64), np.empty(0, np.int64)
        self._waiting: list[Ids] = []

    def add(self, ids_BT: Ids) -> None:
        """Count the ids of whole pictures."""
        left_BT, above_BT = neighbours(ids_BT, self.grid, self.colors)
        self._waiting.append((((above_BT * (self.colors + 1) + left_BT) * self.colors) + ids_BT).ravel())
        # Merging sorts all: it waits until as much is new as is sorted.
        if sum(map(len, self._waiting)) > max(1 << 20, len(self._counted[0])):
            self._merge()

    def background(self) -> Background:
        """The model of all that was counted."""
        self._merge()
        return Background(self.grid, self.colors, *self._counted)

    def _merge(self) -> None:
        keys, counts = self._counted
        new = np.concatenate([np.empty(0, np.int64), *self._waiting])
        self._counted = _merge(np.concatenate([keys, new]), np.concatenate([counts, np.ones(len(new), np.int64)]))
        self._waiting = []


def neighbours(ids_BT: Ids, grid: Grid, colors: int) -> tuple[Ids, Ids]:
    """The ids to the left of each and above it, (B, T) each; K beyond the edge."""
    ids_BHW = unflatten(ids_BT, grid)
    left_BHW, above_BHW = np.full_like(ids_BHW, colors), np.full_like(ids_BHW, colors)
    left_BHW[:, :, 1:], above_BHW[:, 1:] = ids_BHW[:, :, :-1], ids_BHW[:, :-1]
    return flatten(left_BHW), flatten(above_BHW)


class _Table(NamedTuple):
    """What followed each context: keys are context K + id, ascending, and so are the contexts."""

    colors: int
    keys: Ids
    counts: Ids
    contexts: Ids
    totals: Ids
    kinds: Ids

    def mix(self, contexts_BT: Ids, ids_BT: Ids, lower_BT: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(id | context), given that of the smaller model; where the context is new, that is all."""
        place, there = _find(self.keys, contexts_BT * self.colors + ids_BT)
        seen_BT = np.where(there, self.counts[place], 0)
        place, there = _find(self.contexts, contexts_BT)
        total_BT, kinds_BT = np.where(there, self.totals[place], 0), np.where(there, self.kinds[place], 1)
        return (seen_BT + kinds_BT * lower_BT) / (total_BT + kinds_BT)


def _table(keys: Ids, counts: Ids, colors: int) -> _Table:
    contexts, first = np.unique(keys // colors, return_index=True)
    return _Table(colors, keys, counts, contexts, np.add.reduceat(counts, first), np.diff(np.append(first, len(keys))))


def _merge(keys: Ids, counts: Ids) -> tuple[Ids, Ids]:
    """Different keys, ascending, and the sum of each one's counts."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(counts, first)


def _find(sorted_keys: Ids, wanted: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each wanted key is, and whether it is there."""
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return place, sorted_keys[place] == wanted
