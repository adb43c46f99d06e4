"""DATA as batches of pixels, for what looks at pictures themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from imagegpt.codec.levels import LevelsCodec
from imagegpt.codec.pictures import Framing, OnError
from imagegpt.data.ids import Ids, read_ids
from imagegpt.data.records import Source
from imagegpt.errors import InputError
from imagegpt.sequence import unflatten


def read_pixels(
    source: Source,
    framing: Framing,
    on_error: OnError = "raise",
    batch: int = 64,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[Ids, NDArray[np.uint8]]]:
    """Read a source's pictures, framed, batch by batch; they are read ahead by several threads.

    Args:
        source: pictures.
        framing: what becomes of them.
        on_error: "raise" stops at the first bad picture; "skip" leaves it out.
        batch: records of a batch.
        start, stop: numbers of the first record and of the one after the last; default: all.

    Yields:
        What is known of the records, and their pixels, (B, H, W, 3) uint8; B is 0 where all were skipped.

    Raises:
        InputError: the source holds ids; or, with "raise", a bad picture.
    """
    if source.tokens:
        raise InputError(f"{source.path} holds ids, not pictures; give the pictures that they were made from.")
    codec = LevelsCodec()
    for rows in read_ids(source, codec, framing, on_error, start, stop, batch):
        yield rows, codec.decode(unflatten(rows.ids_BT, framing.size))
