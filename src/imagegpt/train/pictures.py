"""Rows of training batches from pictures: read window by window, decoded, augmented and encoded by threads.

Shape suffixes: B rows of this process, T ids of a row, HW a picture's grid, C colour channels.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.codec.augment import Augmentation
from imagegpt.codec.codec import Codec, grid_of, moves_ids
from imagegpt.codec.pictures import Framing
from imagegpt.data.ids import TASK, THREADS
from imagegpt.data.records import Label, Record, Source, read_record
from imagegpt.errors import InputError
from imagegpt.sequence import flatten
from imagegpt.train.order import Order, Share, view_rng, view_rngs
from imagegpt.train.rows import AHEAD, Batch
from imagegpt.train.views import IdViews

# So many records are read in vain rather than that a table is entered anew, which reads a row group's beginning.
GAP = 64


class Row(NamedTuple):
    """A picture, ready."""

    number: int
    ids_T: NDArray[np.int64]
    label: Label | None


class Begun(NamedTuple):
    """A batch that threads are at work on."""

    share: Share
    tasks: list[Future[list[Row | str]]]


class Stopped(Exception):  # noqa: N818 - nobody sees it
    """The stream was closed while records were read."""


Held = Callable[[], dict[int, Record]]  # records by their numbers, once they are there


class PictureRows:
    """Rows of pictures; see `Batches`."""

    def __init__(
        self,
        source: Source,
        codec: Codec,
        framing: Framing,
        augmentation: Augmentation,
        order: Order,
        skipped: Callable[[str], None] | None,
    ) -> None:
        self._source, self._codec, self._framing, self._augmentation = source, codec, framing, augmentation
        self.order, self._skipped = order, skipped
        self._moves_ids = moves_ids(codec, augmentation)
        self._views = IdViews(augmentation, grid_of(codec, framing))
        self._told: set[int] = set()

    def at(self, position: int) -> Batch:
        """The batch at a position."""
        share = self.order.share(position)
        held = self.fetch(share.numbers)
        return self.finish(share, self.make([(number, lambda: held) for number in share.numbers.tolist()], share.epoch))

    def stream(self, position: int) -> Generator[Batch, None, None]:
        """Batches from a position on."""
        ahead = Ahead(self, position)
        try:
            while True:
                yield ahead.next()
        finally:
            ahead.close()

    def fetch(self, numbers: NDArray[np.int64], stop: threading.Event | None = None) -> dict[int, Record]:
        """Records by their numbers, their pictures still undecoded; read in the order in which they lie.

        Raises:
            Stopped: `stop` was set meanwhile.
        """
        wanted = np.sort(numbers)
        held: dict[int, Record] = {}
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > GAP) + 1):
            if not len(run):
                continue
            first, needed = int(run[0]), set(run.tolist())
            for number, record in enumerate(self._source.part(first, int(run[-1]) + 1), first):
                if stop is not None and stop.is_set():
                    raise Stopped
                if number in needed:
                    held[number] = record
        return held

    def make(self, wanted: Iterable[tuple[int, Held]], epoch: int) -> list[Row | str]:
        """Of each record, taken out of where it is held, a row; or the sentence that says why there is none."""
        made: list[tuple[int, NDArray[np.uint8] | str, Label | None]] = []
        for number, held in wanted:
            record = held().pop(number)
            image = read_record(record, "skip")
            made.append((number, image if isinstance(image, str) else self._grid(image, epoch, number), record.label))
        pictures = {number: grid for number, grid, _ in made if not isinstance(grid, str)}
        ids = iter(self._encode(pictures, epoch) if pictures else ())
        return [grid if isinstance(grid, str) else Row(number, next(ids), label) for number, grid, label in made]

    def _grid(self, image: Image.Image, epoch: int, number: int) -> NDArray[np.uint8]:
        """(H, W, C); whole, where what is to be done with it can be done with ids, which is less work."""
        if self._moves_ids:
            return self._framing.apply(image)
        return self._augmentation.apply(image, self._framing, view_rng(self.order.seed, epoch, number))

    def _encode(self, pictures: dict[int, NDArray[np.uint8]], epoch: int) -> NDArray[np.int64]:
        ids_BT = flatten(self._codec.encode(np.stack(list(pictures.values()))))
        if not self._moves_ids:
            return ids_BT
        return self._views.apply(ids_BT, np.array(list(pictures)), view_rngs(self.order.seed, epoch))

    def finish(self, share: Share, results: list[Row | str]) -> Batch:
        """A batch of what threads made, with other rows in the place of those that could not be made."""
        self._tell(share, results)
        rows = [self._instead(share, place, results) for place in range(share.start, share.stop)]
        labels = [row.label for row in rows] if self._source.labelled else None
        numbers = np.array([row.number for row in rows], np.int64)
        return Batch(share.position, np.stack([row.ids_T for row in rows]), labels, numbers)

    def _instead(self, share: Share, place: int, results: list[Row | str]) -> Row:
        """The row at a place of the global batch, or the next one that there is."""
        for offset in range(len(share.numbers_G)):
            there = (place + offset) % len(share.numbers_G)
            if share.start <= there < share.stop:
                made = results[there - share.start]
            else:  # another process's, which tells of it if it can't be read
                number = int(share.numbers_G[there])
                made = self.make([(number, lambda number=number: self.fetch(np.array([number])))], share.epoch)[0]
            if not isinstance(made, str):
                return made
        why = next(result for result in results if isinstance(result, str))
        count = len(share.numbers_G)
        raise InputError(f"{self._source.path}: no picture of a batch of {count} can be read; the first: {why}")

    def _tell(self, share: Share, results: list[Row | str]) -> None:
        for number, result in zip(share.numbers.tolist(), results, strict=True):
            if isinstance(result, str) and number not in self._told:
                self._told.add(number)
                if self._skipped is not None:
                    self._skipped(result)


class Ahead:
    """The threads of a stream, and what they are at work on.

    One thread reads windows, those that the oldest unfinished batch needs and the one after them: two at a time, if a
    batch is no larger than a window. Others make rows of the records, which leave their window as they are used.
    """

    def __init__(self, rows: PictureRows, position: int) -> None:
        self._rows, self._order = rows, rows.order
        self._due = self._order.share(position)  # the next one to begin
        self._start = self._due
        self._windows: dict[tuple[int, int], Future[dict[int, Record]]] = {}
        self._begun: deque[Begun] = deque()
        self._stop = threading.Event()
        threads = min(os.cpu_count() or 1, THREADS)
        self._most = max(AHEAD, -(-2 * TASK * threads // len(self._due.numbers)))  # small batches keep no thread busy
        self._reader = ThreadPoolExecutor(1, "windows")
        self._makers = ThreadPoolExecutor(threads, "pictures")

    def next(self) -> Batch:
        """The oldest batch, when it is ready."""
        self._go_on()
        share, tasks = self._begun.popleft()
        return self._rows.finish(share, [row for task in tasks for row in task.result()])

    def close(self) -> None:
        """End the threads, at the latest when each has finished the picture or the batch of records that it is at."""
        self._stop.set()
        self._reader.shutdown(cancel_futures=True)  # first: makers wait for it
        self._makers.shutdown(cancel_futures=True)

    def _go_on(self) -> None:
        """Begin whatever may be begun."""
        self._read(self._begun[0].share if self._begun else self._due)
        while len(self._begun) < self._most and self._windows_of(self._due) <= self._windows.keys():
            self._begun.append(self._begin(self._due))
            self._due = self._order.share(self._due.position + 1)

    def _read(self, oldest: Share) -> None:
        needed = sorted(self._windows_of(oldest))
        if len(needed) == 1:
            needed.append(self._order.after(*needed[0]))
        for key in self._windows.keys() - set(needed):
            del self._windows[key]
        for key in needed:
            if key not in self._windows:
                self._windows[key] = self._reader.submit(self._window, *key)

    def _window(self, epoch: int, window: int) -> dict[int, Record]:
        first = self._start.first if epoch == self._start.epoch else 0
        return self._rows.fetch(self._order.in_window(epoch, window, first), self._stop)

    def _windows_of(self, share: Share) -> set[tuple[int, int]]:
        size = self._order.window
        return {(share.epoch, window) for window in range(share.rows[0] // size, share.rows[-1] // size + 1)}

    def _begin(self, share: Share) -> Begun:
        windows = [self._windows[share.epoch, row // self._order.window] for row in share.rows]
        wanted = [(number, window.result) for number, window in zip(share.numbers.tolist(), windows, strict=True)]
        tasks = [wanted[first : first + TASK] for first in range(0, len(wanted), TASK)]
        return Begun(share, [self._makers.submit(self._make, task, share.epoch) for task in tasks])

    def _make(self, wanted: Sequence[tuple[int, Held]], epoch: int) -> list[Row | str]:
        if self._stop.is_set():
            raise Stopped
        return self._rows.make(wanted, epoch)
