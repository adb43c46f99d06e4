"""The batches that training sees: of stored ids or of pictures, made ahead of use.

A batch is a function of the source, the seed, its position, and of which process of how many asks: no state is kept, so
a run goes on in the middle of an epoch exactly where it was, and any number of processes sees the same global batches.

Shape suffixes: B rows of this process, T ids of a row.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import numpy as np

from imagegpt.codec.augment import Augmentation
from imagegpt.codec.codec import Codec, grid_of, moves_ids
from imagegpt.codec.pictures import Framing
from imagegpt.data.ids import check_colours, check_tokens
from imagegpt.data.records import Record, Source
from imagegpt.errors import InputError
from imagegpt.train.order import Order, view_rngs
from imagegpt.train.pictures import PictureRows
from imagegpt.train.rows import AHEAD, Batch
from imagegpt.train.views import IdViews

__all__ = ["BLOCK", "WINDOW", "Batch", "Batches"]

# Of pictures: consecutive records that are read together, and records that are shuffled together. Two windows at most
# are in memory, undecoded: 80 MiB of CIFAR's, 3.5 GiB of ImageNet's, shared among the processes.
BLOCK, WINDOW = 256, 16384
STORED_THREADS = 2


class Batches:
    """Global batches of a source, of which this process makes its share.

    Args:
        source: pictures, or ids of the same codec and grid.
        codec: makes ids of pixels.
        framing: brings a picture onto the grid.
        augmentation: how each row is shown; its random numbers depend on the seed, the epoch and the record alone.
        batch: rows of a global batch, over all processes.
        seed: of the order and of the augmentation.
        rank, processes: which of how many processes this is; it makes a contiguous share of each batch's rows.
        skipped: called with a sentence for each record of this process's that can't be read, once in its life.
        block, window: of pictures, see `BLOCK` and `WINDOW`; other sizes are other orders. Ids need none: their order
            is a permutation of all.

    Raises:
        InputError: a batch larger than the source, or that the processes can't share; ids of another codec or grid;
            an augmentation that needs pictures, for ids; a framing that crops at random, which could not be repeated.

    A picture that can't be read is replaced by the next one of the same global batch that can be, the first one being
    next to the last; this depends on the number of processes no more than anything else.

    Attributes:
        per_epoch: whole global batches of an epoch; the records that are left over are others in each epoch.
    """

    def __init__(
        self,
        source: Source,
        codec: Codec,
        framing: Framing,
        augmentation: Augmentation,
        batch: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        skipped: Callable[[str], None] | None = None,
        *,
        block: int = BLOCK,
        window: int = WINDOW,
    ) -> None:
        stored = source.ids_NT is not None
        if stored:
            check_tokens(source, codec, framing)
            if not moves_ids(codec, augmentation):
                raise InputError(
                    f"{source.path} holds ids of a {codec.name}, and the augmentation {augmentation} needs pictures."
                )
        elif framing.crop == "random":
            raise InputError("Training can't repeat a framing that crops at random; take the augmentation crop.")
        window = len(source) if stored else window
        self._order = Order(len(source), batch, seed, rank, processes, block, window)
        self.per_epoch: int = self._order.per_epoch
        if stored:
            self._rows = StoredRows(source, codec, framing, augmentation, self._order)
        else:
            self._rows = PictureRows(source, codec, framing, augmentation, self._order, skipped)

    def epoch(self, position: int) -> tuple[int, int]:
        """The epoch of the global batch at a position, and which of its batches it is."""
        return self._order.epoch(position)

    def at(self, position: int) -> Batch:
        """The batch at a position; of pictures in tables and shards it is slow, as each is looked for alone.

        Raises:
            InputError: a position below 0, a row whose ids are no colours, or no picture that can be read.
        """
        return self._rows.at(position)

    def stream(self, position: int = 0) -> Generator[Batch, None, None]:
        """Batches from a position on, without end, made ahead by threads that end when the generator is closed.

        Raises:
            InputError: as `at`, when the batch is due.
        """
        self.epoch(position)
        return self._rows.stream(position)


class StoredRows:
    """Rows of ids that are mapped into memory; see `Batches`."""

    def __init__(
        self, source: Source, codec: Codec, framing: Framing, augmentation: Augmentation, order: Order
    ) -> None:
        self._source, self._codec, self._order = source, codec, order
        self._views = IdViews(augmentation, grid_of(codec, framing))

    def at(self, position: int) -> Batch:
        """The batch at a position."""
        share = self._order.share(position)
        numbers_B = share.numbers
        assert self._source.ids_NT is not None
        ids_BT = self._source.ids_NT[numbers_B]
        check_colours(ids_BT, self._codec, lambda row: self._record(int(numbers_B[row])).name)
        rng_of = view_rngs(self._order.seed, share.epoch)
        ids_BT = self._views.apply(ids_BT, numbers_B, rng_of).astype(np.int64)
        labels = [self._record(number).label for number in numbers_B.tolist()] if self._source.labelled else None
        return Batch(position, ids_BT, labels, numbers_B)

    def stream(self, position: int) -> Generator[Batch, None, None]:
        """Batches from a position on."""
        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, STORED_THREADS), "batches")
        begun: deque[Future[Batch]] = deque()
        try:
            for ahead in count(position):
                begun.append(pool.submit(self.at, ahead))
                if len(begun) > AHEAD:
                    yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _record(self, number: int) -> Record:
        return next(self._source.records(number, number + 1))
