"""Records as batches: their ids, and their own pixels where these are kept.

Shape suffixes: T ids of a picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagegpt.codec.pictures import Reading
from imagegpt.compression.batches import BATCH_PIXELS, MOST_NAME, Batch, Coding
from imagegpt.data.ids import check_colours
from imagegpt.data.records import Record, Source, read_record
from imagegpt.sequence import flatten

EXACT = Reading(exact=True)


class _Picture(NamedTuple):
    """What is coded of a record."""

    ids_T: NDArray[np.int64]
    name: str | None
    pixels: NDArray[np.uint8] | None


def read_batches(source: Source, coding: Coding, start: int, stop: int) -> Iterator[Batch]:
    """Read records: one batch, or several where the pixels of all are too many for the memory.

    Args:
        source: pictures, or ids.
        coding: what will code them.
        start, stop: numbers of the first record and of the one after the last.

    Raises:
        InputError: a picture can't be read, or holds more than is kept of it.
    """
    waiting: list[_Picture] = []
    for record in source.part(start, stop):
        picture = _read(record, source, coding)
        if waiting and sum(map(_size, [*waiting, picture])) > BATCH_PIXELS:
            yield _batch(waiting, coding)
            waiting = []
        waiting.append(picture)
    yield _batch(waiting, coding)


def name_in(record: Record, source: Source) -> str | None:
    """What a picture's file is called, from the source's folder on, with slashes; `None` where it had none."""
    if not isinstance(record.picture, (str, os.PathLike)):
        return None
    path = Path(record.picture)
    for folder in (source.path, source.path.rpartition(":")[0]):
        if folder and path != Path(folder) and path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()[-MOST_NAME:]
    return path.name[-MOST_NAME:]


def _read(record: Record, source: Source, coding: Coding) -> _Picture:
    if record.ids is not None:
        ids_1T = np.asarray(record.ids, np.int64)[None]
        check_colours(ids_1T, coding.codec, lambda _: record.name)
        return _Picture(ids_1T[0], None, None)
    image = read_record(record, how=EXACT if coding.lossless else None)
    assert isinstance(image, Image.Image)  # what can't be read was raised
    ids_T = flatten(coding.codec.encode(coding.framing.apply(image.convert("RGB")))[None])[0]
    pixels = None
    if coding.lossless:
        levels = np.asarray(image)
        pixels = levels if levels.ndim == 3 else levels[..., None]
    return _Picture(ids_T, name_in(record, source), pixels)


def _size(picture: _Picture) -> int:
    return 0 if picture.pixels is None else picture.pixels.shape[0] * picture.pixels.shape[1]


def _batch(waiting: list[_Picture], coding: Coding) -> Batch:
    pixels = [picture.pixels for picture in waiting if picture.pixels is not None]
    ids_BT = np.stack([picture.ids_T for picture in waiting])
    return Batch(ids_BT, [picture.name for picture in waiting], pixels if coding.lossless else None)
