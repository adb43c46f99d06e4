"""In which order training sees the records of a data set, and the random numbers of each of them.

Everything is a function of the seed, the epoch and a record's number: nothing is kept, so a run goes on anywhere.

Shape suffixes: N records of the source, G rows of a global batch (of all processes), R some rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagegpt.errors import InputError, check_count

SEEDS = 1 << 64  # of Philox's key
# The fourth word of the counter keeps the numbers of an epoch's order and of a record's view apart.
ORDER, VIEW = 0, 1
EPOCHS_KEPT = 2  # the one that is read and the one that is begun


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator that decides the order of an epoch."""
    return np.random.Generator(np.random.Philox(key=_words(seed, epoch), counter=_words(0, 0, 0, ORDER)))


def view_rng(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The generator that decides how a record is shown in an epoch, whatever it is batched with."""
    return np.random.Generator(np.random.Philox(key=_words(seed, epoch), counter=_words(0, 0, number, VIEW)))


def view_rngs(seed: int, epoch: int) -> Callable[[int], np.random.Generator]:
    """A function from a record's number to its `view_rng`: one generator, set anew each time, 5 times as fast.

    What an earlier call returned must be used no more; each thread needs a function of its own.
    """
    philox = np.random.Philox(key=_words(seed, epoch), counter=_words(0, 0, 0, VIEW))
    rng, state = np.random.Generator(philox), philox.state

    def at(number: int) -> np.random.Generator:
        state["state"]["counter"][2] = number
        philox.state = state
        return rng

    return at


def epoch_order(count: int, seed: int, epoch: int, block: int, window: int) -> NDArray[np.int64]:
    """The records' numbers in the order of an epoch, (N,): a permutation.

    Blocks of consecutive records are permuted, and then the records within each window of the result. So what a
    window holds can be read block by block, and is permuted fully. Records that fit into one window are, too.

    Args:
        count: N.
        seed, epoch: decide.
        block: consecutive records that come into a window together.
        window: records that are permuted together.
    """
    rng = epoch_rng(seed, epoch)
    if count <= window:
        return rng.permutation(count)
    firsts = rng.permutation(np.arange(0, count, block))
    numbers_N = (firsts[:, None] + np.arange(block)).reshape(-1)
    numbers_N = numbers_N[numbers_N < count]
    for first in range(0, count, window):
        rng.shuffle(numbers_N[first : first + window])
    return numbers_N


@dataclass(frozen=True)
class Share:
    """What one process must make of a global batch.

    Args:
        position: of the batch since the start of training.
        epoch: that it is in.
        first: its first row in the epoch's order.
        numbers_G: the records of the global batch.
        start, stop: this process's rows among them.
    """

    position: int
    epoch: int
    first: int
    numbers_G: NDArray[np.int64]
    start: int
    stop: int

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The records of this process's rows."""
        return self.numbers_G[self.start : self.stop]

    @property
    def rows(self) -> range:
        """This process's rows in the epoch's order."""
        return range(self.first + self.start, self.first + self.stop)


class Order:
    """Global batches by their positions, and what part of each is a process's.

    Args:
        count: records of the source.
        batch: rows of a global batch.
        seed: decides.
        rank, processes: which of how many processes this is.
        block, window: see `epoch_order`.

    Raises:
        InputError: a batch larger than the source or not divisible among the processes, no such rank or seed, or a size
            below 1.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int, processes: int, block: int, window: int) -> None:
        check_count("block", block)
        check_count("window", window)
        _check(count, batch, seed, rank, processes)
        self.count, self.batch, self.seed, self.block, self.window = count, batch, seed, block, window
        self.per_epoch = count // batch
        size = batch // processes
        self.start, self.stop = rank * size, (rank + 1) * size
        self._kept: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()

    def epoch(self, position: int) -> tuple[int, int]:
        """The epoch of a global batch, and which of its batches it is.

        Raises:
            InputError: a position below 0.
        """
        check_count("The position of a batch", position, 0)
        return divmod(position, self.per_epoch)

    def numbers(self, epoch: int) -> NDArray[np.int64]:
        """The records of an epoch in its order, (N,); read-only, and kept for the last two epochs."""
        with self._lock:  # threads that need the same order wait for one
            if epoch not in self._kept:
                self._kept[epoch] = epoch_order(self.count, self.seed, epoch, self.block, self.window)
                self._kept[epoch].flags.writeable = False
                while len(self._kept) > EPOCHS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(epoch)
            return self._kept[epoch]

    def share(self, position: int) -> Share:
        """What this process must make of the global batch at a position."""
        epoch, batch = self.epoch(position)
        first = batch * self.batch
        numbers_G = self.numbers(epoch)[first : first + self.batch]
        return Share(position, epoch, first, numbers_G, self.start, self.stop)

    def in_window(self, epoch: int, window: int, first: int = 0) -> NDArray[np.int64]:
        """The records of a window that are this process's, (R,), without those of rows before `first`."""
        begin, end = window * self.window, min((window + 1) * self.window, self.per_epoch * self.batch)
        rows_R = np.arange(max(begin, first), max(begin, first, end))
        within_R = rows_R % self.batch
        return self.numbers(epoch)[rows_R[(within_R >= self.start) & (within_R < self.stop)]]

    def after(self, epoch: int, window: int) -> tuple[int, int]:
        """The epoch and the number of the window after one."""
        last = (self.per_epoch * self.batch - 1) // self.window
        return (epoch, window + 1) if window < last else (epoch + 1, 0)


def _words(*words: int) -> NDArray[np.uint64]:
    return np.array(words, np.uint64)


def _check(count: int, batch: int, seed: int, rank: int, processes: int) -> None:
    check_count("batch", batch)
    check_count("processes", processes)
    if not 0 <= rank < processes:
        raise InputError(f"rank must be 0 to {processes - 1}, not {rank}.")
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed must be 0 to 2^64 - 1, not {seed}.")
    if batch % processes:
        below = batch // processes * processes
        sizes = " or ".join(str(size) for size in (below, below + processes) if size)
        raise InputError(f"A batch of {batch} can't be shared by {processes} processes; take {sizes}.")
    if batch > count:
        raise InputError(f"A batch of {batch} is larger than the data set, which has {count} pictures.")
