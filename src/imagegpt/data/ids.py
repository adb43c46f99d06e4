"""DATA as batches of ids, which is what every verb that runs the model reads.

Shape suffixes: B pictures, T ids of a picture, HW a picture's pixels, C colour channels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.codec.codec import Codec, grid_of
from imagegpt.codec.pictures import Framing, OnError
from imagegpt.codec.preprocessor_file import find_codec
from imagegpt.data.records import Label, Record, Source, read_record
from imagegpt.data.tokens import stored_codec
from imagegpt.errors import InputError, check_count
from imagegpt.sequence import flatten

BATCH = 256
THREADS = 8  # more wait for one another: half the work on a small picture holds Python's lock
TASK = 16  # pictures that a thread reads before it asks for more: small ones take less time than asking
Item = TypeVar("Item")
View = Callable[[Image.Image, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Ids:
    """A batch of a source, as the model takes it.

    Args:
        ids_BT: int64; no row where every picture was skipped.
        labels: one for each row; `None` where the source has none.
        numbers: (B,) int64, of the rows' records in the source.
        skipped: a sentence for each record that could not be read, with `on_error="skip"`.
        names: of the rows' records.
    """

    ids_BT: NDArray[np.int64]
    labels: list[Label | None] | None
    numbers: NDArray[np.int64]
    skipped: list[str]
    names: list[str]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.numbers)


def read_ids(
    source: Source,
    codec: Codec,
    framing: Framing,
    on_error: OnError = "raise",
    start: int = 0,
    stop: int | None = None,
    batch: int = BATCH,
    view: View | None = None,
) -> Iterator[Ids]:
    """Read a source as ids, batch by batch; pictures are read ahead by several threads.

    Args:
        source: pictures, or ids of the same codec and grid.
        codec: makes ids of pixels.
        framing: brings a picture onto the grid.
        on_error: "raise" stops at the first bad picture; "skip" leaves it out and tells why.
        start, stop: numbers of the first record and of the one after the last; default: all.
        batch: records of a batch; the last one may have fewer.
        view: makes (height, width, 3) uint8 of an RGB picture and its record's number, in several threads at once;
            default: what the framing makes of it. Where it makes several, (V, height, width, 3), a row has the ids of
            all, one after another.

    Returns:
        Batches in the order of the records, those with no row left included.

    Raises:
        InputError: ids of another codec, another grid or beyond the codec's, or ids where there is a `view`; or,
            with "raise", a bad picture.
    """
    check_count("batch", batch)
    if source.tokens:
        check_tokens(source, codec, framing)
        if view is not None:
            raise InputError(f"{source.path} holds ids, and views are made of pictures; give the pictures.")
    parts = _batches(source.part(start, stop), batch)
    if source.tokens:
        return _stored(parts, source, codec, start)
    return _encoded(parts, source, codec, framing, view or _framed(framing), on_error, start)


def _framed(framing: Framing) -> View:
    return lambda image, _: framing.apply(image)


def codec_of(source: Source, name: str | None) -> Codec:
    """A codec by its name; where none is given the one that a source's ids were made with, or else nano's.

    Raises:
        InputError: there is none of that name, or the source's is damaged.
    """
    if name is None and source.tokens and source.tokens.entries:
        return stored_codec(source.tokens, source.path)
    return find_codec(name or "nano")


def check_tokens(source: Source, codec: Codec, framing: Framing) -> None:
    """Refuse a source of ids that another codec made, or on another grid.

    Raises:
        InputError: it did; the sentence says what to do.
    """
    assert source.tokens
    grid = grid_of(codec, framing)
    if source.tokens.codec != codec.fingerprint:
        raise InputError(
            f"{source.path} holds ids of the codec {source.tokens.codec}; the model's is {codec.fingerprint}: make "
            "them again with the model's codec, or choose the model that they were made for."
        )
    if source.tokens.grid != grid:
        theirs, ours = (f"{height} x {width}" for height, width in (source.tokens.grid, grid))
        raise InputError(f"{source.path} holds ids on a grid of {theirs}; the model's is {ours}: make them again.")


def check_colours(ids_BT: NDArray[Any], codec: Codec, name: Callable[[int], str]) -> None:
    """Refuse ids that the codec does not have.

    Args:
        ids_BT: whole numbers of any dtype.
        codec: whose ids they should be.
        name: what messages call a row.

    Raises:
        InputError: the first row that holds such an id.
    """
    if ids_BT.max() >= len(codec):
        row = int((ids_BT >= len(codec)).any(1).argmax())
        raise InputError(f"{name(row)}: id {ids_BT[row].max()} is no colour of the {codec.name}; it is damaged.")


def _stored(parts: Iterable[list[Record]], source: Source, codec: Codec, start: int) -> Iterator[Ids]:
    for records in parts:
        ids_BT = np.array([record.ids for record in records], np.int64)
        check_colours(ids_BT, codec, lambda row, records=records: records[row].name)
        yield _ids(ids_BT, records, range(len(records)), source, start, [])
        start += len(records)


def _encoded(
    parts: Iterable[list[Record]],
    source: Source,
    codec: Codec,
    framing: Framing,
    view: View,
    on_error: OnError,
    start: int,
) -> Iterator[Ids]:
    numbers = count(start)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, THREADS)) as pool:
        begun = ((records, _begin(pool, records, numbers, view, on_error)) for records in parts)
        for records, tasks in _one_ahead(begun):
            framed = [result for task in tasks for result in task.result()]
            kept = [row for row, result in enumerate(framed) if not isinstance(result, str)]
            skipped = [result for result in framed if isinstance(result, str)]
            ids_BT = np.empty((0, math.prod(grid_of(codec, framing))), np.int64)
            if kept:
                ids_BT = flatten(codec.encode(np.stack([framed[row] for row in kept])))
            yield _ids(ids_BT, records, kept, source, start, skipped)
            start += len(records)


def _begin(
    pool: ThreadPoolExecutor, records: list[Record], numbers: Iterator[int], view: View, on_error: OnError
) -> list[Future[list[NDArray[np.uint8] | str]]]:
    numbered = zip(records, numbers, strict=False)  # no more numbers than records are taken
    return [pool.submit(_frame, task, view, on_error) for task in _batches(numbered, TASK)]


def _frame(numbered: list[tuple[Record, int]], view: View, on_error: OnError) -> list[NDArray[np.uint8] | str]:
    """Each picture on the grid, or the sentence that says why it can't be read."""
    images = ((read_record(record, on_error), number) for record, number in numbered)
    return [image if isinstance(image, str) else view(image, number) for image, number in images]


def _ids(
    ids_BT: NDArray[Any], records: list[Record], kept: Iterable[int], source: Source, start: int, skipped: list[str]
) -> Ids:
    kept = list(kept)
    labels = [records[row].label for row in kept] if source.labelled else None
    names = [records[row].name for row in kept]
    return Ids(ids_BT, labels, start + np.array(kept, np.int64), skipped, names)


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    return iter(lambda: list(islice(items, size)), [])


def _one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Each item, once the next one is made."""
    return (item for item, _ in pairwise(chain(items, [None])) if item is not None)
